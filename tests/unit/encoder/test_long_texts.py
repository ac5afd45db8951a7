"""A long text keeps the same tokens although only its start is tokenised."""

import random
import tracemalloc
from functools import cache

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.truncation import Truncation
from ray_lir.encoder import layouts, long_texts, tokenization
from ray_lir.encoder.checkpoint import find
from ray_lir.encoder.tokenization import TextTokenizer
from tests.support.checkpoints import put_together

ALPHABETS = (
    "abcdefghij",
    "the a of and token query document index Σίσυφος ΟΔΟΣ İstanbul Straße",
    "|-=+.,;:!?()[]{}'\"",
    "中文字符東京都日本語",
    "😀😁👍🏽👨‍👩‍👧🇩🇪",
    "e\u0301a\u0308\u0327o\u0302\u0323",
    "\x00\x01\x0b\x0c\x1c\x85\u200b\u200d\ufeff\ufffd",
    "\ud83d\ude00\udc00",
    "  \t\n\r\n \u00a0\u3000",
    "اللغةالعربيةไทยภาษา한국어",
    "0123456789abcdef+/=",
    "ﬁﷺ①½Ⅷ",
)


def random_text(rng: random.Random, length: int) -> str:
    """Return runs of characters of several alphabets, some of them long, with and without spaces between them."""
    parts: list[str] = []
    size = 0
    while size < length:
        alphabet = rng.choice(ALPHABETS)
        run = "".join(rng.choices(alphabet, k=rng.choice((1, 3, 8, 40, 150, 1500))))
        if rng.random() < 0.2:
            run = rng.choice(alphabet) * rng.choice((5, 300, 3000))
        if rng.random() < 0.1:
            run = rng.choice(("[SEP]", "[MASK]", "two words", "foo", "don't", "ΑΣ.....")) + run
        parts += [run, rng.choice(("", " ", " ", "\n\n", " \u0301"))]
        size += len(run)
    return "".join(parts)


def checkpoint_tokenizer(library: str, variant: str, tmp_path_factory) -> PreTrainedTokenizerFast:
    return layouts.load_tokenizer(find(put_together(library, variant, tmp_path_factory.mktemp("checkpoint") / "c")))


@cache
def corpus() -> list[str]:
    rng = random.Random(1)
    return [random_text(rng, 2000).encode("utf-8", "ignore").decode() for _ in range(40)]


def trained(model, trainer, normalizer=None, pre_tokenizer=None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken("two words"), AddedToken("foo", single_word=True)])
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    bpe = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    unigram = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    metaspace = pre_tokenizers.Metaspace
    match kind:
        case "byte-level BPE":
            return trained(models.BPE(), bpe, normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False))
        case "BPE without words":
            return trained(models.BPE(unk_token="[UNK]", fuse_unk=True), bpe, normalizers.Replace(" ", "▁"))
        case "unigram with words":
            return trained(models.Unigram(), unigram, normalizers.NFKC(), metaspace(prepend_scheme="first"))
        case "unigram without words":
            return trained(models.Unigram(), unigram, normalizers.NFKD(), metaspace(split=False))
        case "wordpiece, whitespace":
            pieces = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
            lower = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()])
            return trained(models.WordPiece(unk_token="[UNK]"), pieces, lower, pre_tokenizers.Whitespace())
        case "cased BERT":
            pieces = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
            cased = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=False)
            return trained(models.WordPiece(unk_token="[UNK]"), pieces, cased, pre_tokenizers.BertPreTokenizer())
    raise ValueError(kind)


TRAINED = ("byte-level BPE", "BPE without words", "unigram with words", "unigram without words", "wordpiece, whitespace", "cased BERT")
CHECKPOINTS = (("pylate", "expansion"), ("sentence_transformers", "bare"), ("stanford", "default"), ("xtr", "checkpoint"))


@pytest.fixture(scope="module", params=[*TRAINED, *CHECKPOINTS, "default"], ids=str)
def tokenizer(request, tmp_path_factory) -> PreTrainedTokenizerFast:
    if request.param == "default":
        return layouts.load_tokenizer(find("all-MiniLM-L6-v2"))
    if isinstance(request.param, tuple):
        return checkpoint_tokenizer(*request.param, tmp_path_factory)
    return trained_tokenizer(request.param)


def text_tokenizer(tokenizer: PreTrainedTokenizerFast, length: int, **conventions) -> TextTokenizer:
    contract = EncoderContract(checkpoint="x", weights_digest="", dim=8, query_length=length, document_length=length, **conventions)
    return TextTokenizer(contract, tokenizer)


@pytest.mark.parametrize("conventions", [{}, {"lower_case": True, "document_prompt": "search: "}], ids=["plain", "prompt, lower case"])
def test_truncated_tokens_and_spans_equal_those_of_the_whole_text(tokenizer, conventions, monkeypatch):
    rng = random.Random(7)
    texts = [random_text(rng, rng.choice((200, 2000, 5000))) for _ in range(30)]
    cutting = text_tokenizer(tokenizer, 24, **conventions)
    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "COUNTED_CHARACTERS", 10**9)
        whole = cutting.tokenize_documents(texts)
        spans = [cutting.document_spans(text) for text in texts]
    assert all(each.exact for each in whole.truncations)
    monkeypatch.setattr(tokenization, "COUNTED_CHARACTERS", 600)
    monkeypatch.setattr(tokenization, "CHARACTERS_AT_ONCE", 4000)
    found = cutting.tokenize_documents(texts)
    for number, text in enumerate(texts):
        np.testing.assert_array_equal(found.ids[number], whole.ids[number], err_msg=repr(text))
        have, want = found.truncations[number], whole.truncations[number]
        assert have.kept == want.kept and have.is_cut == want.is_cut, text
        assert have.total == want.total if have.exact else have.kept <= have.total <= want.total, text
        again = cutting.document_spans(text)
        assert again.pieces == spans[number].pieces
        np.testing.assert_array_equal(again.spans, spans[number].spans)


def test_only_the_start_of_a_long_text_is_tokenised():
    cutting = text_tokenizer(layouts.load_tokenizer(find("all-MiniLM-L6-v2")), 256)
    kinds = ("word ", "|-", "a", "中", "😀", "é ", "\x00", "\u0301", "ab1", "\n", "a" * 2000 + " ")
    for kind in kinds:
        text = "x" + kind * (5_000_000 // len(kind))
        read: list[int] = []
        original = cutting._prepared

        def prepared(text, prompt, original=original, read=read):
            read.append(len(text))
            return original(text, prompt)

        cutting._prepared = prepared
        try:
            cutting.tokenize_documents([text])
        finally:
            del cutting._prepared
        assert sum(read) < 2_000_000 if kind.startswith("a" * 2000) else sum(read) < 200_000, (kind[:3], read)


def test_counts_are_exact_up_to_a_bound_and_a_minimum_beyond():
    cutting = text_tokenizer(layouts.load_tokenizer(find("all-MiniLM-L6-v2")), 16)
    short, long = "word " * 1000, "word " * 100_000
    first, second, third = cutting.tokenize_documents(["word", short, long]).truncations
    assert first == Truncation(3, 3) and not first.is_cut
    assert second == Truncation(16, 1002)
    assert third.kept == 16 and not third.exact and 99_900 <= third.total <= 100_002


def test_memory_of_python_objects_does_not_grow_with_the_texts():
    cutting = text_tokenizer(layouts.load_tokenizer(find("all-MiniLM-L6-v2")), 256)
    texts = ["word " * 1_000_000]
    tracemalloc.start()
    cutting.tokenize_documents(texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def test_text_before_an_added_token_is_not_shortened_too_far():
    tokenizer = layouts.load_tokenizer(find("all-MiniLM-L6-v2"))
    tokenizer.add_tokens([AddedToken("caab")])
    condenser = long_texts.Condenser.of(tokenizer.backend_tokenizer)
    text = "acaca" * 2000 + "caab" + " end"
    assert tokenizer(condenser.condense(text, 100_000).text)["input_ids"] == tokenizer(text)["input_ids"]
