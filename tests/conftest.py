"""What all tests share: a store of their own, and the smallest real model there is."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell that runs the tests in the background has them ignore it, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """Keep every test's store and runs to itself."""
    monkeypatch.setenv("SLM_CALIBRATION_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("SLM_CALIBRATION_RUNS", str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def s3():
    """A service that speaks S3, with a bucket, and who may enter; its address is in the environment."""
    from fsspec import filesystem
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "planted-3d81")
        filesystem("s3").mkdir("bucket")
        yield
    server.stop()


@pytest.fixture(params=["bucket", "folder"])
def place(request, monkeypatch, tmp_path):
    """A place that machines share, of either kind; its address is in the environment."""
    if request.param == "bucket":
        request.getfixturevalue("s3")
        url = f"s3://bucket/{tmp_path.name}"
    else:
        (tmp_path / "mounted").mkdir()
        url = f"file://{tmp_path}/mounted"
    monkeypatch.setenv("SLM_CALIBRATION_SHARED", url)
    return url


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """Folder of a Gemma-2 with random weights, whose tokens are single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
        "{{ message['content'] }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            max_position_embeddings=512,
            sliding_window=64,
            attn_implementation="eager",
            bos_token_id=vocabulary["<bos>"],
            eos_token_id=vocabulary["<eos>"],
            pad_token_id=vocabulary["<pad>"],
        )
    )
    with torch.no_grad():
        # Far from uniform, so that a wrong position or mask shows in the probabilities.
        for parameter in model.parameters():
            parameter.mul_(3)
    folder = tmp_path_factory.mktemp("random-model")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
