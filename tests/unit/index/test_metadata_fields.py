"""The fields of documents' metadata, for forms that build filters."""

import numpy as np
import pyarrow as pa

from ray_lir.base.config import canonical_json
from ray_lir.index import metadata_fields
from ray_lir.index.filter_evaluation import FilteredDocuments
from ray_lir.index.metadata_fields import MetadataField, SampledFields


def fields_of(*parts: list[dict]) -> dict[str, MetadataField]:
    sample = SampledFields()
    for metadata in parts:
        sample.merge(SampledFields.of(metadata))
    return {".".join(each.path): each for each in sample.most_frequent()}


def test_kinds_values_and_limits_of_fields_over_two_shards():
    first = [
        {"year": 2019, "lang": "en", "tags": ["a", "b"], "open": True, "day": "2024-05-31", "author": {"name": "Ada"}},
        {"year": 2021.5, "lang": "de", "tags": ["a", None, {}], "gone": None},
    ]
    second = [{"lang": "en", "day": "2023-01-01T10:00"}, {}]
    fields = fields_of(first, second)
    assert set(fields) == {"year", "lang", "tags", "open", "day", "author.name"}
    assert [fields[name].kind for name in ("year", "lang", "tags", "open", "day")] == ["number", "text", "list", "boolean", "date"]
    assert (fields["year"].lowest, fields["year"].highest, fields["year"].fraction) == (2019, 2021.5, 0.5)
    assert (fields["day"].lowest, fields["day"].highest) == ("2023-01-01T10:00", "2024-05-31")
    assert fields["lang"].values == ["en", "de"] and fields["lang"].complete and fields["lang"].fraction == 0.75
    assert fields["tags"].values == ["a", "b"]
    assert fields["author.name"].path == ["author", "name"]
    assert next(iter(fields)) == "lang"  # the field of most documents comes first


def test_long_texts_and_rare_values_are_left_out():
    texts = [{"note": "x" * 81, "id": str(number)} for number in range(60)]
    fields = fields_of(texts)
    assert fields["note"].values == [] and not fields["note"].complete
    assert len(fields["id"].values) == metadata_fields.MAX_VALUES and not fields["id"].complete


def test_only_live_documents_count():
    rows = [{"_id": str(number), "lang": "en" if number % 2 else "de"} for number in range(6)]
    table = pa.table({"doc_id": [row["_id"] for row in rows], "metadata": [canonical_json({"lang": row["lang"]}).decode() for row in rows]})
    table = table.append_column("title", pa.array([""] * 6)).append_column("text", pa.array([""] * 6))
    live = FilteredDocuments(table, np.array([1, 3, 5])).sampled_fields
    assert live.num_documents == 3
    [field] = live.most_frequent()
    assert field.values == ["en"] and field.fraction == 1.0
    assert FilteredDocuments(table, np.array([], np.int64)).sampled_fields.most_frequent() == []
