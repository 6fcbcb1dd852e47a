"""The notebook that grids name knows every field of a run."""

import ast
import json
from pathlib import Path

import pytest
import yaml

from iekd.config import RunConfig

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "book" / "run.ipynb"
TYPES = {int: "int", float: "float"}


def parameter_lines(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    return "".join(cell["source"]).splitlines()


def test_every_field_is_a_parameter_with_its_description():
    lines = {line.split(":")[0]: line for line in parameter_lines(NOTEBOOK)}
    assert list(lines) == [*RunConfig.model_fields, "exercises"]
    for name, field in RunConfig.model_fields.items():
        kind = ast.parse(lines[name]).body[0].annotation.id
        assert kind == TYPES.get(field.annotation, "str"), name
        assert lines[name].endswith(
            f"# {field.description.replace(' =', ':')}"
        )  # papermill reads no line with a second "="


@pytest.mark.parametrize("grid", sorted((ROOT / "runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_grid_is_a_parameter_of_its_notebook(grid):
    content = yaml.safe_load(grid.read_text(encoding="utf-8"))
    names = {line.split(":")[0] for line in parameter_lines(ROOT / content["notebook"])}
    used = {key for entry in [content.get("base", {}), *content["runs"]] for key in entry}
    assert used <= names
    assert all(
        "method" in {**content.get("base", {}), **entry} for entry in content["runs"]
    )  # the notebook's own default differs
