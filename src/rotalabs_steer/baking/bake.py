"""`bake` makes a model whose weights have the effect of an injector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from rotalabs_steer.baking.biases import fold_additions
from rotalabs_steer.baking.directions import fold_ablation
from rotalabs_steer.errors import ArchitectureError, OptionError, SteeringConflictError
from rotalabs_steer.files.names import shown_model_name
from rotalabs_steer.files.reading import check_carried
from rotalabs_steer.steering.acting_layers import acting_vectors
from rotalabs_steer.steering.attachment import SteeredDecoder
from rotalabs_steer.steering.interventions import Ablate, Add
from rotalabs_steer.steering.plans import PlanItem, constant_additions
from rotalabs_steer.steering.strengths import check_strength
from rotalabs_steer.steering.vector_checks import check_vectors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from rotalabs_steer.steering.acting_layers import Vectors

_KINDS = ("add", "ablate")


def bake(
    model: nn.Module,
    vectors: Vectors | Iterable[Vectors],
    strength: float = 1.0,
    *,
    intervention: str = "add",
    check_model: bool = True,
) -> PreTrainedModel:
    """A new model that is steered by its weights. `save_pretrained` makes an ordinary checkpoint of it.

    `intervention="add"` has the effect of `ActivationInjector(model, vectors, strength)`: each layer's addition goes
    into a bias whose value reaches that layer's output. If the configuration switches the biases of the architecture
    off, they are switched on.

    `intervention="ablate"` takes the direction of one vector out of everything that writes to the residual stream:
    embeddings and the outputs of attention and mlp of every layer (weight orthogonalisation; Arditi et al. 2024,
    arXiv:2406.11717). This has the effect of `Ablate` on each of these before it is added to the residual stream. It
    does more than `Ablate` at layer outputs, which leaves the direction in the stream between attention and mlp.

    The new model is compared with the steered one before it is returned. `config.rotalabs_steer_baked` records the
    vectors and the strength.

    Args:
        model: a decoder-only transformers model. It does not change.
        vectors: for "add", any number of vectors, or vector sets. A set acts at its `acting_layers`. Vectors of one
            layer add up. For "ablate", one vector, whose layer does not matter.
        strength: multiplier of every vector; for "ablate", the part of the direction that is taken out.
        check_model: refuse vectors that were made from another model.

    Raises:
        ArchitectureError: the architecture cannot be steered by its weights; the message says why.
        VectorError, LayerError, ModelMismatchError, OptionError: a vector, the model or an option does not fit.
        SteeringConflictError: the model is being steered.
    """
    given = acting_vectors(vectors)
    if intervention not in _KINDS:
        raise OptionError(f"Weights cannot carry {intervention!r}. Use one of: {', '.join(_KINDS)}; or an injector.")
    factor = check_strength(strength)
    if not isinstance(factor, float) or factor == 0.0:
        raise OptionError(f"Strength {strength!r}: weights have one strength, and with 0 they would not be steered.")
    plain = _check_plain(model)
    check_vectors(plain, given, check_model=check_model)
    if intervention == "ablate":
        check_carried(given[0].vector, torch.float32, "The direction to ablate")
        if len(given) > 1:
            raise OptionError(f"{len(given)} vectors to ablate: weights can be freed of one direction at a time.")
        baked = fold_ablation(plain, Ablate(given[0].vector.detach().float().cpu()), factor)
    else:
        items = [PlanItem(vector.layer_index, Add(vector.vector), "all", factor) for vector in given]
        additions = constant_additions(items, "A bias")
        for layer, addition in additions.items():  # the biases have the model's dtype, which may be a small one
            check_carried(addition, plain.dtype, f"What the bias would add at layer {layer}")
        baked = fold_additions(plain, additions)
    baked.config.rotalabs_steer_baked = {
        "intervention": intervention,
        "strength": factor,
        "vectors": [
            {"behavior": v.behavior, "layer_index": v.layer_index, "model_name": shown_model_name(v.model_name)}
            for v in given
        ],
    }
    return baked


def _check_plain(model: nn.Module) -> PreTrainedModel:
    """Returns the model if `from_pretrained` can read its state dict and nothing steers it."""
    if not isinstance(model, PreTrainedModel) or getattr(model, "peft_config", None):
        raise ArchitectureError(
            f"{type(model).__name__} is not a plain transformers model. Bake the model that AutoModelForCausalLM."
            "from_pretrained returns; an adapter must be merged first (merge_and_unload)."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ArchitectureError("The model is quantised. Load it unquantised, bake it, and quantise the result.")
    if model.config.is_encoder_decoder:
        raise ArchitectureError(f"{type(model).__name__} is an encoder-decoder; decoder-only models can be baked.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ArchitectureError(
            "Some weights of the model are offloaded (they are on the meta device), so there is nothing to bake them "
            "into. Load the model without offloading, on the CPU if it does not fit on the GPU."
        )
    if SteeredDecoder.of(model).steps():
        raise SteeringConflictError("The model is being steered. Detach its injectors before it is baked.")
    return model
