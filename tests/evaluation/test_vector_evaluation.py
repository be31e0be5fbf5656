from dataclasses import replace

from chat_templates import CHATML, byte_tokenizer
from rotalabs_steer import ActivationInjector
from rotalabs_steer.datasets import ContrastPair
from rotalabs_steer.evaluation import Sampling, evaluate_refusal, evaluate_vector
from tiny import make_vector, tiny_llama

PAIRS = [ContrastPair(f"yes {n}", f"no {n}", prompt=f"question {n}") for n in range(4)]


def test_refusals_are_those_of_evaluate_refusal():
    model, tokenizer = tiny_llama(vocab_size=272, max_position_embeddings=1024), byte_tokenizer(CHATML)
    vector, prompts, sampling = make_vector(model), (["one", "two"], ["three"]), Sampling(max_new_tokens=3, seed=4)
    found = evaluate_vector(model, tokenizer, vector, PAIRS, [-1.0, 9.0], refusal_prompts=prompts, sampling=sampling)
    for row in found.strengths:
        injector = ActivationInjector(model, [vector], row.strength)
        alone = evaluate_refusal(model, tokenizer, *prompts, injector=injector, show_progress=False, sampling=sampling)
        timing = {"latency_ms": alone.latency_ms, "tokens_per_second": alone.tokens_per_second}
        assert replace(row.refusal, **timing) == alone
