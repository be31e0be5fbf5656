"""Run with rotalabs-steer 1.2: `write_with_1_2.py MODEL FOLDER PROMPT` saves a set, and the logits it steers to."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rotalabs_steer
from rotalabs_steer import ActivationInjector
from rotalabs_steer.datasets import FORMALITY_PAIRS
from rotalabs_steer.extraction import extract_caa_vectors

assert "rotalabs-steer-1.2" in rotalabs_steer.__file__  # its __version__ says something else
place, folder, prompt = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
model = AutoModelForCausalLM.from_pretrained(place, torch_dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(place)
pairs = [{"positive": pair["positive"], "negative": pair["negative"]} for pair in FORMALITY_PAIRS[:4]]
vectors = extract_caa_vectors(model, tokenizer, pairs, [8, 15, 22], show_progress=False)
vectors.save(folder / "formality")
with ActivationInjector(model, [vectors.get(15)], strength=0.5), torch.no_grad():
    torch.save(model(**tokenizer(prompt, return_tensors="pt"), use_cache=False).logits, folder / "logits.pt")
