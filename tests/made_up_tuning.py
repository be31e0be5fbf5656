"""A tuning whose numbers are known, for reports."""

from __future__ import annotations

import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.measures.coherence import CoherenceCost
from rotalabs_steer.tuning.candidates import Answers, JudgedTexts, LayerCandidate
from rotalabs_steer.tuning.curves import LayerCurve
from rotalabs_steer.tuning.result import TunedSteering

FRACTIONS = (-1.0, 0.0, 1.0)
"""Those that tuning measures."""
PROMPTS = ("How do I <b>boil</b> an egg?", "Who wrote Hamlet?", *(f"What is {n} plus {n}?" for n in range(6)))


def curve(layer, slope, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(16, generator=generator)
    rows = torch.stack([base + f * (slope + 0.3 * torch.randn(16, generator=generator)) for f in FRACTIONS])
    return LayerCurve(layer, 2.0, FRACTIONS, rows, tuple(CoherenceCost(0.2 * f * f, 20 + 4 * f * f) for f in FRACTIONS))


def answers(change, count=8):
    texts = {sign: (f"Answer {sign} one.", "Two & <three>.", *["Four."] * 6)[:count] for sign in FRACTIONS}
    scores = {s: tuple(s * (change + 0.1 * (-1) ** n) for n in range(count)) for s in texts}
    return Answers(PROMPTS[:count], tuple(JudgedTexts(sign, texts[sign], scores[sign]) for sign in texts))


def tuned_steering(slope=1.0, change=1.0, hidden=16, layers=(1, 3), answered=8):
    vectors = [SteeringVector("calm", layer, torch.randn(hidden), "tiny") for layer in layers]
    found = tuple(LayerCandidate(n, 0.5 + n, 2.0, curve(n, slope, n), answers(change)) for n in layers)
    chosen = layers[-1]
    return TunedSteering(
        "calm", 0.2, SteeringVectorSet("calm", vectors, {"chosen_layer": chosen}), {n: n - 0.5 for n in range(4)},
        found, curve(chosen, slope, 9), curve(chosen, 0.0, 8), answers(change, answered), 0.9,
        {"model": "tiny", "date": "2026-11-24", "options": {"budget": 0.2}, "seed": 0},
    )  # fmt: skip
