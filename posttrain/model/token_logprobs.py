"""Log-probs and entropies of given tokens from hidden states, in tiles of the logits.

The [tokens, vocabulary] matrix of logits never exists, in either direction: what exists is one tile
of it, ``rows`` tokens by ``columns`` words. Forward folds tile after tile into the running maximum
m, s = sum exp(z - m) and x = sum exp(z - m) (z - m) of each token, so that

    logprob = z_target - m - log s              entropy = log s - x / s

Backward computes each tile again; with p = softmax(z / temperature), of each token

    d logprob / dz = (onehot(target) - p) / temperature
    d entropy / dz = -p (log p + entropy) / temperature

Tiles run over the words first, so that the gradient of a word's weights is finished, in
float32 and in a small buffer, before the next words are looked at: no float32 copy of the weight's
gradient exists either. On a CPU a tile fits the cache, which makes the passes over it ten times
as fast as over memory (docs/log.md); on a GPU it is large enough to fill the device.

The running maximum is Milakov and Gimelshein's (arXiv:1805.02867); computing logits again in the
backward pass is that of cut cross-entropy (arXiv:2411.09009), of which its filter of small
gradients is left out: it is an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

EntropyMode = Literal["off", "metric", "loss"]  # not computed; without gradient; with gradient


class TokenLogprobs(nn.Module):
    """The language-model head. Shares the model's own weight: it adds no parameter.

    At most ``chunk`` x vocabulary logits exist at once, in tiles of up to ``_ROWS`` tokens.
    """

    def __init__(self, projection: nn.Linear, chunk: int) -> None:
        super().__init__()
        # Registered here as well, so that ZeRO-3 gathers it around this module's two passes.
        self.weight = projection.weight
        self.bias = projection.bias
        self.chunk = chunk

    def forward(
        self, hidden: Tensor, targets: Tensor, temperature: float, entropy: EntropyMode
    ) -> tuple[Tensor, Tensor]:
        """hidden [N, H], targets [N] -> log-probs [N], entropies [N] (or [0]), in float32."""
        logprobs, entropies = _TiledLogprobs.apply(
            hidden, self.weight, self.bias, targets, temperature, self.chunk, entropy
        )
        return logprobs, entropies if entropy == "loss" else entropies.detach()


def chunk_for(vocabulary: int, device: str) -> int:
    """Tokens' worth of logits that exist at once: 4 MiB of float32 on a CPU, 256 MiB on a GPU."""
    elements = 2**26 if device.startswith("cuda") else 2**20
    return min(1024, max(1, -(-elements // vocabulary)))


_ROWS = {"cpu": 1024, "cuda": 4096}  # tokens of a tile; more only where ``chunk`` is larger


class _Tiles:
    """How [n, vocabulary] is cut, and the buffers that every tile of it uses again."""

    def __init__(self, hidden: Tensor, weight: Tensor, chunk: int) -> None:
        n, vocabulary = len(hidden), len(weight)
        self.rows = max(1, min(n, max(chunk, _ROWS.get(hidden.device.type, 1024))))
        columns = max(1, min(vocabulary, chunk * vocabulary // self.rows))
        whole = columns < 64 or columns == vocabulary
        self.columns = columns if whole else columns // 64 * 64
        self.tokens = [slice(at, min(at + self.rows, n)) for at in range(0, n, self.rows)]
        self.starts = range(0, vocabulary, self.columns)
        self.words = [slice(at, min(at + self.columns, vocabulary)) for at in self.starts]
        size = self.rows * self.columns if n else 0
        self._low = hidden.new_empty(size)
        self._exact = self._low if hidden.dtype == torch.float32 else self._low.float()
        self._second = torch.empty_like(self._exact)

    def logits(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float
    ) -> Tensor:
        """[r, H], [c, H] -> [r, c] float32, overwritten by the next call."""
        low = self.low(len(hidden), len(weight))
        if bias is None:
            torch.mm(hidden, weight.T, out=low)
        else:
            torch.addmm(bias, hidden, weight.T, out=low)
        exact = self._exact[: low.numel()].view(low.shape)
        if exact.dtype != low.dtype:
            exact.copy_(low)
        return exact if temperature == 1.0 else exact.div_(temperature)

    def low(self, rows: int, columns: int) -> Tensor:
        """[rows, columns] in the precision of the products."""
        return self._low[: rows * columns].view(rows, columns)

    def second(self, like: Tensor) -> Tensor:
        return self._second[: like.numel()].view(like.shape)


@dataclass(slots=True)
class _Running:
    """What is known of each token [r] after some of the words."""

    maximum: Tensor
    total: Tensor  # s
    weighted: Tensor  # x
    chosen: Tensor  # logit of the target

    @classmethod
    def start(cls, n: int, device: torch.device) -> _Running:
        zeros = torch.zeros(3, n, device=device)
        # Not -inf: times a total of zero it would be no number.
        lowest = torch.full((n,), torch.finfo(torch.float32).min, device=device)
        return cls(lowest, zeros[0], zeros[1], zeros[2])

    def fold(self, z: Tensor, second: Tensor, with_entropy: bool) -> None:
        """Take in a tile of logits [r, c]; it is overwritten."""
        maximum = torch.maximum(self.maximum, z.amax(1))
        moved = self.maximum - maximum
        shrink = moved.exp()
        z.sub_(maximum[:, None])
        e = torch.exp(z, out=second)
        if with_entropy:
            self.weighted.addcmul_(self.total, moved).mul_(shrink).add_(z.mul_(e).sum(1))
        self.total.mul_(shrink).add_(e.sum(1))
        self.maximum = maximum


class _TiledLogprobs(torch.autograd.Function):
    """hidden [N, H], weight [V, H], bias [V], targets [N] -> log-probs [N], entropies [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        entropy: EntropyMode,
    ) -> tuple[Tensor, Tensor]:
        n = len(targets)
        logprobs, log_z = torch.empty(2, n, device=hidden.device)
        entropies = torch.empty(0 if entropy == "off" else n, device=hidden.device)
        tiles = _Tiles(hidden, weight, chunk)
        for tokens in tiles.tokens:
            h, running = hidden[tokens], _Running.start(len(targets[tokens]), hidden.device)
            hits = _hits(targets[tokens], tiles)
            for words, (rows, columns) in zip(tiles.words, hits, strict=True):
                b = None if bias is None else bias[words]
                z = tiles.logits(h, weight[words], b, temperature)
                running.chosen[rows] = z[rows, columns]
                running.fold(z, tiles.second(z), entropy != "off")
            log_s = running.total.log()
            log_z[tokens] = running.maximum + log_s
            logprobs[tokens] = running.chosen - running.maximum - log_s
            if entropy != "off":
                entropies[tokens] = log_s - running.weighted / running.total
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, entropies)
        ctx.settings = (temperature, chunk, entropy)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_z, entropies = ctx.saved_tensors
        temperature, chunk, entropy = ctx.settings
        learns = ctx.needs_input_grad[1]  # a frozen head needs half the products
        tiles = _Tiles(hidden, weight, chunk)
        d_hidden = torch.zeros(hidden.shape, device=hidden.device)
        d_weight = torch.empty_like(weight) if learns else None
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        hits = [_hits(targets[tokens], tiles) for tokens in tiles.tokens]
        across = [hidden[tokens].T.contiguous() for tokens in tiles.tokens] if learns else []
        grads = tuple(grad / temperature for grad in grads)
        for j, words in enumerate(tiles.words):
            w, b = weight[words], None if bias is None else bias[words]
            d_w = torch.zeros(w.shape[::-1], device=w.device)  # [H, c]
            for i, tokens in enumerate(tiles.tokens):
                z = tiles.logits(hidden[tokens], w, b, temperature)
                d_z = z.sub_(log_z[tokens, None])
                d_logprob = grads[0][tokens]
                if entropy == "loss":
                    d_z = torch.exp(z, out=tiles.second(z))
                    z.add_(entropies[tokens, None]).mul_(grads[1][tokens, None])
                    d_z.mul_(z.add_(d_logprob[:, None])).neg_()
                else:
                    d_z.exp_().mul_(-d_logprob[:, None])
                rows, columns = hits[i][j]
                d_z[rows, columns] += d_logprob[rows]
                if d_bias is not None:
                    d_bias[words] += d_z.sum(0)
                low = tiles.low(*d_z.shape).copy_(d_z)
                _add_product(d_hidden[tokens], low, w)
                if learns:
                    _add_product(d_w, across[i], low)
            if d_weight is not None:
                d_weight[words] = d_w.T
        d_bias = None if d_bias is None or bias is None else d_bias.to(bias.dtype)
        return d_hidden.to(hidden.dtype), d_weight, d_bias, None, None, None, None


def _hits(targets: Tensor, tiles: _Tiles) -> list[tuple[Tensor, Tensor]]:
    """For each tile along the words: which rows have their target in it, and in which column."""
    ordered, rows = targets.sort()
    edges = torch.tensor([*tiles.starts, tiles.words[-1].stop], device=targets.device)
    cuts = torch.searchsorted(ordered, edges).tolist()
    return [
        (rows[a:b], ordered[a:b] - start)
        for start, a, b in zip(tiles.starts, cuts[:-1], cuts[1:], strict=True)
    ]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, with a total in float32. A GPU does not round the product before."""
    if total.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    elif a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
