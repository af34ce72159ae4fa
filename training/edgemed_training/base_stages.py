"""The two stages of a small model from scratch, told apart by the recipe. Called by the command `base`."""

from pathlib import Path

from edgemed.errors import UsageError
from edgemed_training.base_chat import ChatReport, train_chat
from edgemed_training.base_loop import Progress
from edgemed_training.base_recipe import BaseRecipe, ChatRecipe
from edgemed_training.base_train import BaseReport, train_base


def train_stage(
    recipe: BaseRecipe | ChatRecipe, *, base: Path | None, data: Path, out: Path, progress: Progress
) -> BaseReport | ChatReport:
    """Train as the recipe says.

    Args:
        recipe: of either stage.
        base: the model that a chat model is made of.
        data: the folder that `prepare` wrote, or a file of JSON Lines with question and answer.
        out: the run's folder.
        progress: told a sentence now and then.

    Raises:
        UsageError: a chat recipe without base, or another recipe with one.
        EdgemedError: as `train_base` and `train_chat` say.
    """
    if isinstance(recipe, BaseRecipe):
        if base is not None:
            raise UsageError(
                "This recipe makes a base model from nothing: it takes no --base.",
                hint="Leave --base away, or use a recipe of the chat stage, such as base/edge_chat_8m.",
            )
        return train_base(recipe, data=data, out=out, progress=progress)
    if base is None:
        raise UsageError(
            "This recipe makes a chat model of a base: it needs --base.",
            hint="Name the model folder of the base stage: --base RUN/model.",
        )
    return train_chat(recipe, base=base, data=data, out=out, progress=progress)
