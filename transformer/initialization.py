"""A student that starts from its teacher: the teacher's weights, projected onto the student's width.

Shapes: B batch, L length, D teacher's width, d student's width, R student's width of a head, I intermediate units.
On a sample of text the teacher's hidden states h of all mapped layers have mean mu and principal directions V (D, d).
The student's hidden state s stands for V'h, so that h is near V s + r with r = mu - V V' mu. Every weight of the
student is the teacher's under this map; `fit_dense` is the map itself, so the hidden losses start small.

Its parts are known: students that begin with some of the teacher's layers (DistilBERT, arXiv 1910.01108), a narrower
model by the principal directions of the hidden states (SliceGPT, arXiv 2401.15024), and the most important units of a
feed-forward layer (weight subcloning, arXiv 2312.09299). The paper of TinyBERT draws its general student at random.
"""

import torch

from transformer.files import UserError


class Moments:
    """Mean (n,) and second moment (n, n), or its `diagonal` (n,), of vectors that come in batches, in float64."""

    def __init__(self, diagonal=False):
        self.count, self.sum, self.products, self.diagonal = 0, 0.0, 0.0, diagonal

    def add(self, vectors):  # (tokens, n)
        self.count += len(vectors)
        self.sum = self.sum + vectors.sum(dim=0, dtype=torch.float64)
        if vectors.is_cuda:  # where float32 products are TF32's, whose errors would drown the small directions
            vectors = vectors.double()
        products = vectors.square().sum(dim=0) if self.diagonal else vectors.T @ vectors
        self.products = self.products + products.double()

    mean = property(lambda self: self.sum / self.count)
    second = property(lambda self: self.products / self.count)


@torch.no_grad()
def initialize_from_teacher(student, teacher, mapping, batches):
    """Set the weights of `student` (all but pooler and heads) from those of `teacher`, in place. Raises UserError if
    the student does not project onto the teacher's width.

    Args: student, teacher: models with a `bert` inside; mapping: from `distillation.layer_map`, other layers start from
    the teacher's layer at the same relative depth; batches: dicts of `Sequences.batch`, a few thousand tokens in all.
    """
    config, depth = student.config, teacher.config.num_hidden_layers
    if config.fit_size != (width := teacher.config.hidden_size):
        raise UserError(f"the student projects onto width {config.fit_size}, the teacher has {width}")
    layers = range(1, config.num_hidden_layers + 1)
    sources = {m: mapping.get(m) or max(round(m * depth / config.num_hidden_layers), 1) for m in layers}
    hidden, attended, units = collect(teacher, sources.values(), batches)
    view = View([hidden[g] for g in (0, *sources.values())], config.hidden_size)

    for fit in student.fit_denses if config.fit_per_layer else [student.fit_dense]:
        fit.weight.copy_(view.directions)
        fit.bias.copy_(view.rest)
    put_embeddings(student.bert.embeddings, teacher.bert.embeddings, view, hidden[0])
    for m, g in sources.items():
        layer, source = student.bert.encoder.layer[m - 1], teacher.bert.encoder.layer[g - 1]
        put_attention(layer.attention, source.attention, view, hidden[g - 1])
        put_norm(layer.attention.output.LayerNorm, source.attention.output.LayerNorm, view, attended[g])
        put_feed_forward(layer, source, view, units[g])
        put_norm(layer.output.LayerNorm, source.output.LayerNorm, view, hidden[g])


def collect(teacher, layers, batches):
    """{layer: Moments} over real tokens of the hidden states (of `layers`, their inputs, and the embeddings), the
    attention's outputs, and the activations of the intermediate units."""
    hidden = {layer: Moments() for g in (0, *layers) for layer in (g, max(g - 1, 0))}
    attended, units = ({g: Moments(diagonal) for g in layers} for diagonal in (False, True))
    was_training, bert = teacher.training, teacher.eval().bert
    for batch in batches:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()  # (B, L)
        states, mask_bias = bert.embed(ids, batch["token_type_ids"], mask)  # (B, L, D)
        hidden[0].add(states[real].float())
        for g, layer in enumerate(bert.encoder.layer[: max(hidden)], 1):
            between, _, _ = layer.attention(states, mask_bias)  # (B, L, D)
            active = layer.intermediate(between)  # (B, L, I)
            states = layer.output(active, between)
            for moments, values in ((hidden, states), (attended, between), (units, active)):
                if g in moments:
                    moments[g].add(values[real].float())
    teacher.train(was_training)
    return hidden, attended, units


class View:
    """The map between the teacher's width and the student's: V (D, d) and r (D,), in float64."""

    def __init__(self, moments, width):
        mean = torch.stack([each.mean for each in moments]).mean(dim=0)
        self.teacher_width, self.width, self.padded = len(mean), width, width >= len(mean)
        if self.padded:  # the identity, and 0 in the student's additional dimensions
            self.directions = torch.eye(len(mean), width, dtype=mean.dtype, device=mean.device)
        else:
            second = torch.stack([each.second for each in moments]).mean(dim=0)
            vectors = torch.linalg.eigh(second - torch.outer(mean, mean)).eigenvectors.flip(1)[:, :width]
            # An eigenvector may have either sign: make the largest component positive.
            largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
            self.directions = vectors * largest.sign()
        self.rest = mean - self.directions @ (self.directions.T @ mean)

    def into(self, linear):
        """A linear map of the teacher's h as a matrix for u = [s; 1]: W (n, D), b (n,) -> (n, d + 1)."""
        weight, bias = linear.weight.double(), linear.bias.double()
        return torch.cat([weight @ self.directions, (weight @ self.rest + bias)[:, None]], dim=1)

    def onto(self, weight):
        """A map to the teacher's h as a map to s: V'W, (D, n) -> (d, n), or (D,) -> (d,)."""
        return self.directions.T @ weight.double()

    def metric(self, moments):
        """S^(1/2) and its inverse, (d + 1, d + 1), with S = E[u u'], which weighs the error in each direction."""
        second, mean = self.onto(moments.second) @ self.directions, self.onto(moments.mean)
        whole = torch.cat([torch.cat([second, mean[:, None]], dim=1), torch.cat([mean, mean.new_ones(1)])[None]])
        values, vectors = torch.linalg.eigh(whole)
        roots = values.clamp(min=1e-9 * values.max().item()).sqrt()
        return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def low_rank(product, rank):
    """The best factors of a matrix: P (rank, n), Q (rank, m) with P'Q nearest to `product` (n, m), evenly split."""
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    count = min(rank, len(values))
    roots = values[:count].sqrt()[:, None]
    factors = roots * left.T[:count], roots * right[:count]
    return [torch.cat([factor, factor.new_zeros(rank - count, factor.shape[1])]) for factor in factors]


def put_embeddings(embeddings, source, view, moments):
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        rows, parameter = getattr(source, name).weight.double() @ view.directions, getattr(embeddings, name).weight
        count = min(len(parameter), len(rows))  # the student's additional rows stay random
        parameter[:count].copy_(rows[:count])
    put_norm(embeddings.LayerNorm, source.LayerNorm, view, moments)


def put_norm(norm, source, view, moments):
    """A LayerNorm whose output, before its bias, has the size of V'(h - b), where h is the teacher's output."""
    bias = source.bias.double()
    if view.padded:
        size = view.onto(source.weight) * (view.teacher_width / view.width) ** 0.5
    else:
        second = moments.second - torch.outer(moments.mean, bias) - torch.outer(bias, moments.mean - bias)
        size = (torch.trace(view.onto(second) @ view.directions) / view.width).sqrt().expand(view.width)
    norm.weight.copy_(size)
    norm.bias.copy_(view.onto(bias))


def put_attention(attention, source, view, moments):
    """For each head the best low-rank factors, in the metric of the data, of query-key and output-value products."""
    own, theirs, heads = attention.self, source.self, source.self.num_heads
    width = view.width // own.num_heads  # R
    half, inverse = view.metric(moments)
    maps = [view.into(linear).unflatten(0, (heads, -1)) for linear in (theirs.query, theirs.key, theirs.value)]
    outputs = view.onto(source.output.dense.weight).unflatten(1, (heads, -1))  # (d, H, D / H)
    chosen = [head * heads // own.num_heads for head in range(own.num_heads)]
    for head, taken in enumerate(chosen):
        query, key, value = (each[taken] for each in maps)  # (D / H, d + 1) each
        # u' scores u are the teacher's scores; the student divides by the root of its own head width.
        scores = query.T @ key * (width / query.shape[0]) ** 0.5
        query, key = (factor @ inverse for factor in low_rank(half @ scores @ half, width))
        # Student heads that take the same teacher head share its output.
        product = outputs[:, taken] @ value / chosen.count(taken)  # (d, d + 1)
        output, value = low_rank(product @ half, width)
        rows = slice(head * width, (head + 1) * width)
        for linear, factor in ((own.query, query), (own.key, key), (own.value, value @ inverse)):
            linear.weight[rows].copy_(factor[:, :-1])
            linear.bias[rows].copy_(factor[:, -1])
        attention.output.dense.weight[:, rows].copy_(output.T)
    attention.output.dense.bias.copy_(view.onto(source.output.dense.bias))


def put_feed_forward(layer, source, view, moments):
    """Keep the units whose removal would cost most; the mean of the others goes into the bias."""
    inner, outer = source.intermediate.dense, source.output.dense
    incoming, outgoing = view.into(inner), view.onto(outer.weight)  # (I, d + 1), (d, I)
    deviation = (moments.second - moments.mean.square()).clamp(min=0).sqrt()
    order = (deviation * outgoing.norm(dim=0)).argsort(descending=True, stable=True)
    count = len(layer.intermediate.dense.bias)
    kept, dropped = order[:count].sort().values, order[count:]
    layer.output.dense.weight.zero_()  # additional units have no effect at first
    layer.intermediate.dense.weight[: len(kept)].copy_(incoming[kept, :-1])
    layer.intermediate.dense.bias[: len(kept)].copy_(incoming[kept, -1])
    layer.output.dense.weight[:, : len(kept)].copy_(outgoing[:, kept])
    layer.output.dense.bias.copy_(view.onto(outer.bias) + outgoing[:, dropped] @ moments.mean[dropped])
