"""Contrast pairs: what steering vectors are made from."""

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.builtin import (
    behavior_names,
    describe_behavior,
    load_assertiveness_pairs,
    load_behavior,
    load_conciseness_pairs,
    load_creativity_pairs,
    load_empathy_pairs,
    load_evaluation,
    load_formality_pairs,
    load_hierarchy_pairs,
    load_humor_pairs,
    load_refusal_pairs,
    load_technical_depth_pairs,
    load_tool_restraint_pairs,
    load_uncertainty_pairs,
)
from rotalabs_steer.datasets.loading import load_pairs
from rotalabs_steer.datasets.pairs import (
    ContrastPair,
    ContrastPairDataset,
    EvaluationDataset,
    EvaluationExample,
)
from rotalabs_steer.datasets.personas import persona_pairs
from rotalabs_steer.datasets.quality import Finding, QualityReport, check_pairs
from rotalabs_steer.datasets.row_files import read_rows
from rotalabs_steer.datasets.saving import save_csv, save_jsonl

__all__ = [
    "ChatTokenizer",
    "ContrastPair",
    "ContrastPairDataset",
    "EvaluationDataset",
    "EvaluationExample",
    "Finding",
    "QualityReport",
    "behavior_names",
    "check_pairs",
    "describe_behavior",
    "load_assertiveness_pairs",
    "load_behavior",
    "load_conciseness_pairs",
    "load_creativity_pairs",
    "load_empathy_pairs",
    "load_evaluation",
    "load_formality_pairs",
    "load_hierarchy_pairs",
    "load_humor_pairs",
    "load_pairs",
    "load_refusal_pairs",
    "load_technical_depth_pairs",
    "load_tool_restraint_pairs",
    "load_uncertainty_pairs",
    "persona_pairs",
    "read_rows",
    "save_csv",
    "save_jsonl",
]
