"""Measuring what steering does: effect, coherence cost, and the layer and strength that balance them."""

from rotalabs_steer.errors import JudgeError, MalformedVerdictError, MissingVerdictError
from rotalabs_steer.evaluation.analysis_files import (
    load_analysis_metadata,
    load_analysis_results,
    save_analysis_results,
)
from rotalabs_steer.evaluation.behavior_rates import evaluate_steering_strength, strength_sweep
from rotalabs_steer.evaluation.comparison import compare_with_baseline
from rotalabs_steer.evaluation.metrics import BehaviorMetrics, EvaluationResult, RefusalCounts, RefusalMetrics
from rotalabs_steer.evaluation.refusal_rates import evaluate_refusal
from rotalabs_steer.evaluation.strength_choice import find_optimal_strength
from rotalabs_steer.evaluation.tradeoffs import TradeoffResult, analyze_tradeoffs
from rotalabs_steer.evaluation.vector_evaluation import StrengthEvaluation, VectorEvaluation, evaluate_vector
from rotalabs_steer.generation.answers import Sampling, TimedAnswers, answer_prompts, generate_response
from rotalabs_steer.intervals import (
    Estimate,
    PairedComparison,
    bootstrap_mean,
    compare_paired,
    mean_interval,
    wilson_interval,
)
from rotalabs_steer.judging.llm_judge import JudgeCost, LLMJudge
from rotalabs_steer.judging.refusal import is_refusal
from rotalabs_steer.measures.capability import CapabilityCheck, capability_check, capability_questions
from rotalabs_steer.measures.detection import Detection, auroc, detection_auroc, project
from rotalabs_steer.measures.projected_text import ProjectedText
from rotalabs_steer.measures.text_statistics import TextMeasures, measure_texts
from rotalabs_steer.tuning.options import TuningOptions
from rotalabs_steer.tuning.result import TunedSteering
from rotalabs_steer.tuning.tuner import Tuner, tune

__all__ = [
    "BehaviorMetrics",
    "CapabilityCheck",
    "Detection",
    "Estimate",
    "EvaluationResult",
    "JudgeCost",
    "JudgeError",
    "LLMJudge",
    "MalformedVerdictError",
    "MissingVerdictError",
    "PairedComparison",
    "ProjectedText",
    "RefusalCounts",
    "RefusalMetrics",
    "Sampling",
    "StrengthEvaluation",
    "TextMeasures",
    "TimedAnswers",
    "TradeoffResult",
    "TunedSteering",
    "Tuner",
    "TuningOptions",
    "VectorEvaluation",
    "analyze_tradeoffs",
    "answer_prompts",
    "auroc",
    "bootstrap_mean",
    "capability_check",
    "capability_questions",
    "compare_paired",
    "compare_with_baseline",
    "detection_auroc",
    "evaluate_refusal",
    "evaluate_steering_strength",
    "evaluate_vector",
    "find_optimal_strength",
    "generate_response",
    "is_refusal",
    "load_analysis_metadata",
    "load_analysis_results",
    "mean_interval",
    "measure_texts",
    "project",
    "save_analysis_results",
    "strength_sweep",
    "tune",
    "wilson_interval",
]
