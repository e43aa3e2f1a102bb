"""The tiny model folder, as transformers reads it."""

from __future__ import annotations

import logging

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig


def test_tiny_folder_loads_silently_and_round_trips(tiny_folder, tmp_path, caplog, monkeypatch):
    """Catches a config field that transformers warns about, or reads as something else than was written."""
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        config = AutoConfig.from_pretrained(tiny_folder)
        AutoTokenizer.from_pretrained(tiny_folder)
        AutoImageProcessor.from_pretrained(tiny_folder, backend="pil")
        generation = GenerationConfig.from_pretrained(tiny_folder)
        config.save_pretrained(tmp_path)
        again = AutoConfig.from_pretrained(tmp_path)
    assert [entry.getMessage() for entry in caplog.records] == []
    assert generation.eos_token_id == [274, 272]
    assert generation.pad_token_id == 272
    assert again.text_config.to_dict() == config.text_config.to_dict()
    assert again.vision_config.to_dict() == config.vision_config.to_dict()
    assert (config.text_config.hidden_size, config.vision_config.window_size) == (128, 56)
    assert config.text_config.rope_parameters["mrope_section"] == [4, 6, 6]
    assert config.tie_word_embeddings


def test_tiny_tokenizer(tiny_folder):
    """Catches a role that needs several tokens, numbers merged into one token, and bytes without a symbol."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokens = [tokenizer.encode(text) for text in ("user", "assistant", "system", "<think>", "</answer>")]
    assert [len(ids) for ids in tokens] == [1] * 5
    assert tokenizer.tokenize("120") == ["1", "2", "0"]
    everything = "é€😀\x00\t 12,5 % ü"
    assert tokenizer.decode(tokenizer.encode(everything)) == everything
