"""The small sections refuse meshes and batches that cannot be."""

import pytest
from pydantic import ValidationError

from train.config.sections import BatchSection, CheckpointSection, EvaluationSection, MeshSection


@pytest.mark.parametrize("axis", ["data", "fsdp", "context", "tensor"])
def test_an_axis_without_devices_is_refused(axis: str) -> None:
    with pytest.raises(ValidationError, match="an axis has at least 1 device"):
        MeshSection.model_validate({axis: 0})
    assert getattr(MeshSection.model_validate({axis: -1}), axis) == -1


def test_a_batch_is_a_multiple_of_its_microbatches() -> None:
    with pytest.raises(ValidationError, match="size 3 is not a multiple of num_microbatches 2"):
        BatchSection(size=3, num_microbatches=2)
    assert BatchSection(size=4, num_microbatches=2).size == 4


@pytest.mark.parametrize("section", [EvaluationSection, CheckpointSection])
def test_every_is_at_least_one_update(section: type) -> None:
    with pytest.raises(ValidationError, match="every"):
        section(every=0)


def test_evaluation_data_has_names_that_metrics_can_have() -> None:
    section = EvaluationSection.model_validate({"data": {"task-1": "a.jsonl", "b": ["c", "d"]}})
    assert [source.path for source in section.data["b"]] == ["c", "d"]
    with pytest.raises(ValidationError, match="'a b' is no name of evaluation data"):
        EvaluationSection.model_validate({"data": {"a b": "a.jsonl"}})
    with pytest.raises(ValidationError, match="a has no source"):
        EvaluationSection.model_validate({"data": {"a": []}})


def test_samples_come_with_evaluations() -> None:
    assert EvaluationSection(every=5, sample_every=10).sample_every == 10
    with pytest.raises(ValidationError, match="sample_every 7 is not a multiple of every 5"):
        EvaluationSection(every=5, sample_every=7)
