"""The page with every setting of a recipe is what its command prints."""

from pathlib import Path

from profuser.recipe.models import Recipe
from profuser.recipe.reference import reference

PAGE = Path(__file__).parents[2] / "ray_jobs" / "recipes" / "REFERENCE.md"


def test_the_page_is_what_the_command_prints():
    assert PAGE.read_text() == reference(), "run: python -m profuser.recipe.reference > ray_jobs/recipes/REFERENCE.md"


def test_every_setting_is_described():
    lines = reference().splitlines()
    keys = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert {"path", "top_k", "schedule", "learning_rate", "weight", "kv_cache_gib", *Recipe.model_fields} <= keys
    sections = {"section", "list of section", "list of section or section"}
    bare = [
        line
        for line in lines
        if line.startswith("| `") and line.endswith("|  |") and not sections & set(line.split(" | "))
    ]
    assert [line for line in bare if "`kind`" not in line] == []
