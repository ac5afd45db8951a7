"""Corpora in every layout: rows that become documents, refused rows with reasons, and the division of files into chunks."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus import scan as corpus_module
from ray_lir.corpus.records import BadRow, Document, corpus_files, document_text, parse_document, read_documents, read_rows
from ray_lir.corpus.scan import read_chunks, sample_texts, scan
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.token_embeddings import TokenEmbeddings

ROWS = [{"_id": str(number), "title": f"Title {number}", "text": f"text of {number}", "year": number} for number in range(10)]
DOCUMENTS = [Document(row["_id"], row["title"], row["text"], {"year": row["year"]}) for row in ROWS]


def lines(rows: list) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_jsonl(path: Path, rows: list = ROWS) -> None:
    path.write_bytes(lines(rows))


def write_gzip(path: Path, rows: list = ROWS) -> None:
    path.write_bytes(gzip.compress(lines(rows)))


def write_parquet(path: Path, rows: list = ROWS) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)


@pytest.mark.parametrize(("name", "write"), [("c.jsonl", write_jsonl), ("c.jsonl.gz", write_gzip), ("c.parquet", write_parquet)])
def test_every_layout_gives_the_same_documents(tmp_path: Path, name: str, write):
    write(tmp_path / name)
    assert list(read_documents(str(tmp_path / name))) == DOCUMENTS
    assert list(read_documents(str(tmp_path))) == DOCUMENTS


def test_the_corpus_of_a_beir_folder_is_read_and_its_queries_are_not(tmp_path: Path):
    write_gzip(tmp_path / "corpus.jsonl.gz")
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "a query"}])
    assert list(read_documents(str(tmp_path))) == DOCUMENTS


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet", "docs.jsonl", "corpus-00000-of-00001.parquet"])
def test_queries_judgements_and_other_files_are_not_read_as_documents(tmp_path: Path, name: str):
    write = {"l": write_jsonl, "z": write_gzip, "t": write_parquet}[name[-1]]
    write(tmp_path / name)
    query = [{"_id": "q", "text": "a query"}]
    write_jsonl(tmp_path / "queries.jsonl", query)
    write_gzip(tmp_path / "queries.jsonl.gz", query)
    write_parquet(tmp_path / "queries.parquet", query)
    write_parquet(tmp_path / "queries-00000-of-00001.parquet", query)
    write_jsonl(tmp_path / "qrels.jsonl", query)
    write_jsonl(tmp_path / ".hidden.jsonl", query)
    write_jsonl(tmp_path / "_SUCCESS.jsonl", query)
    for other in ("README.md", "qrels.tsv", "queries.tsv"):
        (tmp_path / other).write_text("_id\ttext\nq\ta query\n")
    (tmp_path / "qrels").mkdir()
    write_jsonl(tmp_path / "qrels" / "test.jsonl", query)
    (tmp_path / "nested.jsonl").mkdir()
    assert list(read_documents(str(tmp_path))) == DOCUMENTS
    assert [document.doc_id for document in read_documents(str(tmp_path / "queries.parquet"))] == ["q"]  # named explicitly


@pytest.mark.parametrize("folder", ["corpus", "corpus.parquet"])
def test_a_folder_named_corpus_is_the_corpus(tmp_path: Path, folder: str):
    for name in (folder, "queries"):
        (tmp_path / name).mkdir()
    write_parquet(tmp_path / folder / "part-0.parquet", ROWS[:5])
    write_parquet(tmp_path / folder / "part-1.parquet", ROWS[5:])
    write_jsonl(tmp_path / "queries" / "queries.jsonl", [{"_id": "q", "text": "a query"}])
    assert list(read_documents(str(tmp_path))) == DOCUMENTS


def test_an_embeddings_folder_is_refused_as_a_corpus(tmp_path: Path):
    save_embeddings(tmp_path / "embeddings", TokenEmbeddings.of([np.eye(2, 8)]))
    with pytest.raises(ConfigError, match="holds token embeddings or an index, not a corpus"):
        corpus_files(tmp_path / "embeddings")
    with pytest.raises(ConfigError, match="holds token embeddings, not a corpus"):
        list(read_documents(tmp_path / "embeddings" / "embeddings"))
    write_jsonl(tmp_path / "queries.jsonl")
    with pytest.raises(ConfigError, match="not queries"):
        corpus_files(tmp_path)


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path):
    write_parquet(tmp_path / "b.parquet", ROWS[5:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:5])
    (tmp_path / "README.md").write_text("not rows")
    (tmp_path / "_SUCCESS").touch()
    assert list(read_documents(str(tmp_path))) == DOCUMENTS


@pytest.mark.parametrize("name", ["corpus.csv", "corpus.json", "corpus"])
def test_a_file_of_an_unknown_kind_is_refused_with_the_known_kinds(tmp_path: Path, name: str):
    (tmp_path / name).write_text("a,b")
    with pytest.raises(ConfigError, match=r"\.jsonl, \.jsonl\.gz, \.parquet"):
        corpus_files(str(tmp_path / name))


def test_a_wrong_path_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere.*check the path"):
        corpus_files(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("doc_id", ["a/b", "..", ".", "%2F", "?#", " a ", " ", "a\u2028b", "a\x85b", "é" * 1024, "7"])
def test_an_id_is_any_text_without_control_characters(doc_id: str):
    assert parse_document(json.dumps({"_id": doc_id, "text": "t"}).encode()).doc_id == doc_id


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint64(), pa.decimal128(20, 0), pa.dictionary(pa.int32(), pa.string())])
def test_integer_ids_become_decimal_text(tmp_path: Path, kind: pa.DataType):
    ids = pa.array(["7"]).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array([7]).cast(kind)
    pq.write_table(pa.table({"_id": ids, "text": ["t"]}), tmp_path / "c.parquet")
    assert list(read_documents(str(tmp_path / "c.parquet"))) == [Document("7", "", "t", {})]
    assert parse_document(b'{"_id": 7, "id": "7", "text": "t"}') == Document("7", "", "t", {"id": "7"})


@pytest.mark.parametrize("field", ["_id", "doc_id", "id"])
def test_the_id_field_has_three_names(field: str):
    assert parse_document(json.dumps({field: "7", "text": "t"}).encode()) == Document("7", "", "t", {})


def test_metadata_is_the_metadata_object_plus_all_other_fields():
    row = {"_id": "1", "text": "t", "url": "u", "metadata": {"year": 1999, "url": "nested"}, "tags": ["a"], "id": "other"}
    assert parse_document(json.dumps(row).encode()).metadata == {"year": 1999, "url": "u", "tags": ["a"], "id": "other"}


def test_an_empty_text_is_a_document_and_a_missing_text_is_not():
    assert parse_document(b'{"_id": "1", "text": ""}') == Document("1", "", "", {})
    with pytest.raises(BadRow, match="no text"):
        parse_document(b'{"_id": "1", "text": null}')


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"text": "t"}', "no id: expected a field _id, doc_id or id"),
        (b'{"_id": null, "text": "t"}', "no id"),
        (b'{"_id": "", "text": "t"}', "_id is empty"),
        (b'{"_id": 1.5, "text": "t"}', "_id is a number with a fraction (1.5), not a string or a whole number"),
        (b'{"_id": 7.0, "text": "t"}', "_id is a number with a fraction (7.0)"),
        (b'{"_id": ["a"], "text": "t"}', "_id is a list"),
        (b'{"_id": "a\\nb", "text": "t"}', "_id holds the control character U+000A ('a\\nb')"),
        (b'{"_id": "a\\u0000", "text": "t"}', "_id holds the control character U+0000"),
        (b'{"_id": "\\u001c", "text": "t"}', "_id holds the control character U+001C"),
        (b'{"_id": "\\ud800", "text": "t"}', "half of a surrogate pair"),
        pytest.param(json.dumps({"_id": "x" * 1025, "text": "t"}).encode(), "_id has 1,025 characters, more than 1,024", id="long"),
        (b'{"_id": "1", "text": "a", "text": "b"}', "holds the field 'text' twice"),
        (b'{"_id": "1", "text": "a", "metadata": {"n": 1, "n": 2}}', "holds the field 'n' twice"),
        pytest.param(b'{"_id": "1", "text": "t", "n": ' + b"[" * 101 + b"]" * 101 + b"}", "nested more than 100 deep", id="nested"),
        (b'{"_id": true, "text": "t"}', "_id is a truth value"),
        (b'{"_id": "1"}', "no text"),
        (b'{"_id": "1", "text": ["a"]}', 'text is a list (["a"]), not a string'),
        (b'{"_id": "1", "text": {"a": 1}}', "text is an object"),
        (b'{"_id": "1", "title": 3.5, "text": "t"}', "title is a number"),
        (b'["_id", "text"]', "not a JSON object but a list"),
        (b'"text"', "not a JSON object but a string"),
        (b"null", "not a JSON object but null"),
        (b'{"_id": "1", "text": "t"', "not JSON"),
        (b"plain words", "not JSON"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
        (b'{"_id": "1", "text": "caf\xe9"}', "not UTF-8: byte 0xe9 at position 25"),
        (b'{"_id": "1", "text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"_id": "1", "text": "t", "note": "\\udfff"}', "half of a surrogate pair"),
        (b'{"_id": "1", "text": "t", "size": 1e999}', "number that is out of range"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(row: bytes, reason: str):
    with pytest.raises(BadRow) as caught:
        parse_document(row)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROWS_OF_ANY_SHAPE = st.fixed_dictionaries({}, optional=dict.fromkeys(("_id", "title", "text", "metadata", "other"), JSON))


@given(st.binary(max_size=60) | (JSON | ROWS_OF_ANY_SHAPE).map(lambda value: json.dumps(value).encode()))
def test_a_row_of_any_shape_is_a_document_or_is_refused_in_one_line(row: bytes):
    try:
        document = parse_document(row)
    except BadRow as error:
        assert re.fullmatch(r"[^\n]+", str(error))
    else:
        value = json.loads(row.decode("utf-8-sig"))
        assert isinstance(document.text, str) and document.text == value["text"]
        assert document.doc_id and document.doc_id == str(value["_id"]).removesuffix(".0")


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    TEXT.filter(lambda text: text and not re.search(r"[\x00-\x1f\x7f]", text)),
    TEXT,
    TEXT,
    st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT, max_size=3),
)
def test_a_document_has_the_fields_of_its_row(doc_id: str, title: str, text: str, metadata: dict):
    row = {"_id": doc_id, "title": title, "text": text, "metadata": metadata}
    assert parse_document(json.dumps(row).encode()) == Document(doc_id, title, text, metadata)
    assert parse_document(json.dumps(row, ensure_ascii=False).encode()) == Document(doc_id, title, text, metadata)


def test_title_and_text_are_joined_as_beir_joins_them():
    assert document_text("Title", "text") == "Title text"
    assert document_text("", " text ") == "text"
    assert document_text("Title", "") == "Title"


def test_blank_lines_and_a_byte_order_mark_are_skipped_and_lines_counted(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"_id": "1", "text": "a"}\r\n\r\n  \n{"_id": "2", "text": "b"}')
    assert [line for line, _ in read_rows(str(path))] == [1, 4]
    assert [document.doc_id for document in read_documents(str(path))] == ["1", "2"]


def test_nan_becomes_null_in_json():
    assert parse_document(b'{"_id": "1", "text": "t", "score": NaN}').metadata == {"score": None}


def test_parquet_text_that_is_not_utf8_refuses_only_its_row(tmp_path: Path):
    raw = pa.array([b"good", b"caf\xe9"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"_id": ["1", "2"], "text": texts}), tmp_path / "c.parquet")
    (_, good), (_, bad) = read_rows(str(tmp_path / "c.parquet"))
    assert parse_document(good).text == "good"
    with pytest.raises(BadRow, match="not UTF-8"):
        parse_document(bad)


def test_bytes_are_refused_as_text(tmp_path: Path):
    write_parquet(tmp_path / "c.parquet", [{"_id": "1", "text": b"bytes"}])
    with pytest.raises(BadRow, match="text is an object"):
        parse_document(next(read_rows(str(tmp_path / "c.parquet")))[1])


@pytest.mark.parametrize(("name", "write"), [("c.jsonl.gz", write_gzip), ("c.parquet", write_parquet)])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str, write):
    write(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=f"{name}.*get it again"):
        list(read_rows(str(tmp_path / name)))


def test_plain_text_in_a_gzip_file_name_is_refused(tmp_path: Path):
    write_jsonl(tmp_path / "c.jsonl.gz")
    with pytest.raises(FormatError, match="gzip"):
        list(read_rows(str(tmp_path / "c.jsonl.gz")))


def test_a_scan_counts_documents_and_finds_repeated_ids_over_all_files(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", [{"_id": "1"}, *ROWS[:4], ROWS[0]])
    write_parquet(tmp_path / "b.parquet", [ROWS[3], ROWS[5]])
    found = scan(corpus_files(str(tmp_path)), docs_per_chunk=4)
    assert (found.num_rows, found.num_docs, found.num_chunks) == (8, 5, 3)
    assert found.first_bad == "a.jsonl line 1: no text"
    chunks = [chunk for file in found.files for chunk in read_chunks(file, 4)]
    assert [chunk.number for chunk in chunks] == [0, 1, 2]
    assert [chunk.repeated for chunk in chunks] == [frozenset(), frozenset({1}), frozenset({0})]
    assert [chunk.lines for chunk in chunks] == [[1, 2, 3, 4], [5, 6], [1, 2]]


def test_invalid_rows_do_not_count_as_repeated_ids(tmp_path: Path):
    write_jsonl(tmp_path / "c.jsonl", [{"text": "no id"}, {"text": "nor here"}, {"_id": "1"}, {"_id": "1", "text": "t"}])
    found = scan(corpus_files(str(tmp_path)), docs_per_chunk=10)
    assert (found.num_docs, found.files[0].repeated) == (1, ())


def test_the_corpus_fingerprint_depends_on_the_rows_only(tmp_path: Path):
    plain, packed, other = (tmp_path / name for name in ("plain", "packed", "other"))
    for folder in (plain, packed, other):
        folder.mkdir()
    (plain / "c.jsonl.gz").write_bytes(gzip.compress(lines(ROWS), 1))
    (packed / "c.jsonl.gz").write_bytes(gzip.compress(lines(ROWS), 9))
    write_gzip(other / "c.jsonl.gz", [*ROWS[:-1], {"_id": "9", "text": "changed"}])
    prints = [scan(corpus_files(str(folder)), size).fingerprint for folder in (plain, packed, other) for size in (3, 512)]
    assert prints[0] == prints[1] == prints[2] == prints[3]
    assert prints[4] == prints[5] != prints[0]


def test_a_corpus_that_changes_during_a_job_is_refused(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    for rows in ([*ROWS[:3], {"_id": "x", "text": "x"}], ROWS[:3], ROWS[:7]):
        write_jsonl(path, ROWS[:6])
        file = scan([str(path)], docs_per_chunk=2).files[0]
        write_jsonl(path, rows)
        with pytest.raises(ConfigError, match="was changed while the job was running"):
            list(read_chunks(file, 2))


def test_skipping_finished_chunks_leaves_the_others_unchanged(tmp_path: Path):
    write_jsonl(tmp_path / "c.jsonl")
    file = scan([str(tmp_path / "c.jsonl")], docs_per_chunk=3).files[0]
    everything = list(read_chunks(file, 3))
    assert list(read_chunks(file, 3, skip={0, 2})) == [everything[1], everything[3]]


def test_a_chunk_of_large_documents_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus_module, "CHUNK_BYTES", 100)
    write_jsonl(tmp_path / "c.jsonl", [{"_id": str(number), "text": "x" * 60} for number in range(4)])
    chunks = list(read_chunks(scan([str(tmp_path / "c.jsonl")], 512).files[0], 512))
    assert [len(chunk.rows) for chunk in chunks] == [2, 2]


def test_a_sample_is_taken_from_the_whole_corpus(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", ROWS[:5])
    write_jsonl(tmp_path / "b.jsonl", ROWS[5:])
    found = scan(corpus_files(str(tmp_path)), docs_per_chunk=2)
    assert sample_texts(found, 5) == [f"Title {number} text of {number}" for number in (0, 2, 4, 6, 8)]
    assert len(sample_texts(found, 100)) == 10
