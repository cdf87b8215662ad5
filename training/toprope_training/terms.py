"""What a release promises and is held to: the same for a recipe's release and for an imported model's.

A recipe is a program and must not be loaded everywhere; its terms are a plain value.
"""

from __future__ import annotations

import msgspec

from toprope_shared.manifest import InputPrivacy, Metric, Placement, Preprocessing, Privacy
from toprope_shared.tensors import TensorSpec
from toprope_training import variants
from toprope_training.recipe import Recipe


class Terms(msgspec.Struct, frozen=True):
    """The terms of one release; each field is the recipe's attribute of that name, see `Recipe`.

    Attributes:
        stacked: every example is a call of its own, because the inputs do not share a first axis of any size.
        lenient: a variant that can't be made or does not pass is left out and does not stop the release, as long as one of
            the `variants` that stand in `demanded` is left.
        demanded: the variants without which there is no release.
    """

    model: str
    description: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    metric: Metric
    privacy: Privacy
    deadline_ms: int
    accuracy_budget: float
    required: float | None
    parity_limits_ppm: dict[str, int]
    variants: tuple[str, ...]
    placements: dict[str, Placement]
    engines: tuple[str, ...]
    compared: tuple[str, ...]
    classes: str
    logits: bool
    alpha: float
    margin: float = 0.0
    preprocessing: tuple[Preprocessing, ...] = ()
    input_privacy: tuple[InputPrivacy, ...] = ()
    stacked: bool = False
    lenient: bool = False
    demanded: tuple[str, ...] = ()

    def class_output(self) -> str:
        """Return the output that holds one score a label, or "" when this is no classifier."""
        if self.classes or not self.labels:
            return self.classes
        fitting = (
            spec.name
            for spec in self.outputs
            if spec.dtype.kind == "f" and len(spec.shape) == 2 and spec.shape[1] == len(self.labels)
        )
        return next(fitting, "")


def with_saved_model(terms: Terms) -> Terms:
    """Return the terms with the SavedModel itself among the variants, for the cloud."""
    name = variants.saved_model_for(terms.variants)
    placements = {name: variants.placement(name, {}), **terms.placements}
    return msgspec.structs.replace(terms, variants=tuple(dict.fromkeys((*terms.variants, name))), placements=placements)


def of_recipe(recipe: Recipe) -> Terms:
    """Return a recipe's terms; labels and preprocessing are added when the data are known."""
    return Terms(
        model=recipe.name,
        description=recipe.description,
        inputs=recipe.inputs,
        outputs=recipe.outputs,
        labels=(),
        metric=recipe.metric,
        privacy=recipe.privacy,
        input_privacy=recipe.input_privacy,
        deadline_ms=recipe.deadline_ms,
        accuracy_budget=recipe.accuracy_budget,
        required=recipe.required,
        parity_limits_ppm=dict(recipe.parity_limits_ppm),
        variants=recipe.variants,
        placements={name: variants.placement(name, recipe.placements) for name in recipe.variants},
        engines=recipe.engines,
        compared=recipe.compared or tuple(spec.name for spec in recipe.outputs),
        classes=recipe.classes,
        logits=recipe.logits,
        alpha=recipe.alpha,
        margin=recipe.margin,
    )
