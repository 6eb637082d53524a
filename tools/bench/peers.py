"""LlamaGen's own PyTorch code, from a checkout that the user names; torch must be importable."""

import contextlib
import functools
import io
import sys
from collections.abc import Callable

CLASSES = 1000


@functools.cache
def llamagen(path: str, size: str, tokens: int, form: str = "eager"):
    """The model and its device, loaded once. `form`: "eager", in float32 on a CPU; "compiled", as its sample_c2i.py does it, in
    bfloat16; "trained", with weights in float32, as its train_c2i.py keeps them."""
    import torch

    sys.path.insert(0, path)
    from autoregressive.models.gpt import GPT_models

    torch.manual_seed(0)
    options = {name: 0.0 for name in ("attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "token_dropout_p")}
    options["class_dropout_prob"] = 0.1  # without any there would be no null class, and no guidance
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT_models[size](vocab_size=16384, block_size=tokens, num_classes=CLASSES, cls_token_num=1, **options)
    exact = form == "trained" or (device == "cpu" and form == "eager")
    model = model.to(device, torch.float32 if exact else torch.bfloat16)
    return torch.compile(model, mode="reduce-overhead", fullgraph=True) if form == "compiled" else model, device


def sampling(path: str, size: str, tokens: int, batch: int, guidance: float, form: str) -> Callable[..., None]:
    """Draws a batch, from all tokens at temperature 1; the model is loaded when it first does. The function's argument: how
    many tokens of a picture (all)."""

    def run(count: int = tokens):
        import torch

        model, device = llamagen(path, size, tokens, form)
        from autoregressive.models.generate import generate

        model.eval()
        labels = torch.arange(batch, device=device) % CLASSES
        options = {"cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": True}
        with contextlib.redirect_stderr(io.StringIO()):  # its progress
            generate(model, labels, count, cfg_scale=guidance, **options)
        synchronize(device)

    return run


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
