"""`gangpao data fetch`, `build`, `stats`, `show` and `pictures`: get text, make a corpus, see what is in it, draw pictures."""

import itertools
import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gangpao.data.build import Built, build, load_data_config, open_built
from gangpao.data.pictures.command import pictures_command
from gangpao.data.sources import public
from gangpao.data.tokens.order import normalised
from gangpao.data.tokens.pack import Loader
from gangpao.optional import need
from gangpao.progress import Progress
from gangpao.text.tokenizer import Tokenizer
from gangpao.units import show_bytes

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_Out = Annotated[Path, typer.Argument(help="The folder of a built corpus.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
_MAX_SHOWN = 100_000


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Training data: get text, build a corpus from a configuration, count it, read it."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    "fetch", help="Get text that everybody can have, verified, to build a corpus from; without a name: what there is."
)
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Names of texts, for example zh-laws.")] = None,
    as_json: _Json = False,
) -> None:
    """Bring texts into the cache and print where they are."""
    for name in names or ():
        public.folder_of(name)  # a wrong name is said before anything is downloaded
    try:
        with Progress() as progress:
            for name in names or ():
                public.fetch(name, progress)
    except KeyboardInterrupt:
        print("stopped; what came is kept, and the same command goes on from there", file=sys.stderr)
        raise
    rows = public.listing(names or ())
    print(json.dumps(rows, ensure_ascii=False) if as_json else texts_table(rows, bool(names)))


def texts_table(rows: list[dict[str, Any]], fetched: bool) -> str:
    """The texts for a person, and what to do next."""
    lines = [["name", "download", "here", "text", "licence"]]
    for row in rows:
        size = show_bytes(row["bytes"])
        lines.append([row["name"], size, "yes" if row["path"] else "no", row["title"], row["licence"]])
    names = " ".join(row["name"] for row in rows)
    use = f'[sources.{rows[0]["name"]}] with format = "public" and path = "{rows[0]["name"]}"'
    hint = f"A source of a corpus is then: {use}; configs/data-public.toml is an example."
    return "\n".join([*table(lines, left=3), "", hint if fetched else f"Get them with: gangpao data fetch {names}"])


@app.command("build", help="Clean, deduplicate, decontaminate, tokenize: from a configuration to token shards.")
def build_command(
    config: Annotated[
        Path, typer.Argument(help="A TOML file, for example configs/data-tiny.toml; its paths start at its folder.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the result; what is in it already is used again.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: a.b=c, or root=FOLDER from here.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Build a corpus and print what became of it."""
    settings = load_data_config(config, overrides or ())
    with Progress() as progress:
        built = build(settings, out, progress=progress)
    print(json.dumps(facts(built), ensure_ascii=False) if as_json else report(built))


@app.command(
    "stats", help="What was read, dropped and kept by source; the mixture of every stage; optionally a picture."
)
def stats(
    out: _Out,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the mixtures into this PNG file.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all tokens and compare with the fingerprints.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Print the tables of a built corpus."""
    built = open_built(out)
    if verify:
        for shards in (*built.train.values(), *built.heldout.values()):
            shards.verify()
    if plot is not None:
        draw(built, plot)
    print(json.dumps(facts(built), ensure_ascii=False) if as_json else report(built))


@app.command("show", help="One document, or with --row one packed row, as the model gets it.")
def show(
    out: _Out,
    source: Annotated[str, typer.Argument(help="Name of a source; with --row the name of a stage.")],
    number: Annotated[int, typer.Option("--number", "-n", min=0, help="Which document or row.")] = 0,
    heldout: Annotated[bool, typer.Option("--heldout", help="From what is held out instead of training.")] = False,
    row: Annotated[bool, typer.Option("--row", help="A row of a stage's mixture instead of a document.")] = False,
    seq_len: Annotated[int, typer.Option("--seq-len", min=1, max=1 << 20, help="Tokens of a row.")] = 512,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the order of rows.")] = 0,
    as_json: _Json = False,
) -> None:
    """Print the text of a document or row; what is not learned stands in grey marks, borders in lines."""
    built = open_built(out)
    if row:
        found = packed_row(built, source, number, seq_len, seed)
    else:
        found = document(built, source, number, heldout)
    print(json.dumps(found, ensure_ascii=False) if as_json else found["text"])


app.command("pictures", help="Pictures with questions and answers, drawn by us or from archives, to train sight on.")(
    pictures_command
)


def facts(built: Built) -> dict[str, Any]:
    """Everything the report says, as JSON."""
    return {
        "path": str(built.path),
        "fingerprint": built.fingerprint,
        "vocab_size": built.vocab_size,
        "stages": {stage: mixture(built, stage) for stage in built.stages},
        **built.report,
    }


def mixture(built: Built, stage: str) -> dict[str, dict[str, float]]:
    """By source: its share of the tokens, and how many tokens of the stage go by until it has been seen once."""
    shares = normalised(built.stages[stage])
    return {
        name: {"share": share, "once_at": built.train[name].num_tokens / share}
        for name, share in shares.items()
        if share
    }


def report(built: Built) -> str:
    """The facts for a person."""
    sources = built.report["sources"]
    lines = [f"{built.path}: vocabulary {built.vocab_size:,}, fingerprint {built.fingerprint[:16]}", ""]
    rows = [["source", "text", "read", "kept", "train tokens", "held out", "bytes/token", "dropped"]]
    for name, found in sources.items():
        size = show_bytes(found["read_bytes"])
        train, held = found["train"], found["heldout"]
        kept = train["documents"] + held["documents"]
        ratio = train["bytes"] / train["tokens"] if train["tokens"] and not found["supervised"] else 0
        dropped = ", ".join(f"{count:,} {why}" for why, count in sorted(found["dropped"].items(), key=lambda d: -d[1]))
        rows.append([
            name + (" (chat)" if found["supervised"] else ""), size, f"{found['read']:,}", f"{kept:,}", f"{train['tokens']:,}",
            f"{held['tokens']:,}", f"{ratio:.2f}" if ratio else "", dropped,
        ])  # fmt: skip
    totals = [sum(found[part]["tokens"] for found in sources.values()) for part in ("train", "heldout")]
    read, size = (sum(found[part] for found in sources.values()) for part in ("read", "read_bytes"))
    rows.append(["all", show_bytes(size), f"{read:,}", "", f"{totals[0]:,}", f"{totals[1]:,}", "", ""])
    lines += table(rows)
    for stage in built.stages:
        lines += ["", f"stage {stage}"]
        lines += [
            f"  {name:24} {part['share']:7.2%}   seen once after {part['once_at'] / 1e6:,.2f} M tokens of the stage"
            for name, part in mixture(built, stage).items()
        ]
    lines += _malformed(sources)
    lines += _evaluation(built.report)
    if built.report["duplicates"]:
        first = built.report["duplicates"][0]
        lines += ["", f"near-duplicates, for example (similarity {first['similarity']})"]
        lines += [f"  {kind:8} {' '.join(first[kind].split())[:100]}" for kind in ("dropped", "like")]
    return "\n".join(lines)


def _malformed(sources: dict[str, Any]) -> list[str]:
    """Where rows were no documents, and why."""
    lines = []
    for name, found in sources.items():
        if found["malformed"]:
            lines += ["", f"{name}: {found['dropped'].get('malformed', 0):,} rows are no documents, for example"]
            lines += [f"  {row['where']}: {row['why']}" for row in found["malformed"]]
    return lines


def _evaluation(found: dict[str, Any]) -> list[str]:
    """What decontamination found, by evaluation file."""
    if not found["evaluation"]:
        return []
    rows = [["evaluation file", "items", "too short", "items found", "documents dropped"]]
    parts = [source.get("contaminated") or {} for source in found["sources"].values()]
    for name, sizes in found["evaluation"].items():
        items, documents = (sum(p.get(kind, {}).get(name, 0) for p in parts) for kind in ("items", "documents"))
        rows.append([name, f"{sizes['items']:,}", f"{sizes['too_short']:,}", f"{items:,}", f"{documents:,}"])
    return ["", *table(rows)]


def table(rows: list[list[str]], left: int = -1) -> list[str]:
    """Columns side by side; the first, and those from `left` on (else the last), to the left, the others to the right."""
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    out = []
    for row in rows:
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(cell + space if i == 0 or i >= left % len(row) else space + cell)
        out.append("  ".join(cells).rstrip())
    return out


def _width(text: str) -> int:
    """Columns on a terminal, where Han characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def document(built: Built, name: str, number: int, heldout: bool) -> dict[str, Any]:
    """One document with its ids and text. Raises ValueError for a source or number there is not."""
    group = built.heldout if heldout else built.train
    if name not in group:
        raise ValueError(f"no source {name!r:.80} here; there are {', '.join(group) or 'none'}")
    shards = group[name]
    if number >= shards.num_documents:
        raise ValueError(
            f"{name} has {shards.num_documents} documents, the last is --number {shards.num_documents - 1}"
        )
    ids, mask = shards.document(number).tolist(), shards.document_mask(number).tolist()
    tokenizer = Tokenizer.from_dir(built.tokenizer_dir)
    text = _with_marks(tokenizer, ids[:_MAX_SHOWN], mask) if shards.supervised else _plain(tokenizer, ids[:_MAX_SHOWN])
    return {"source": name, "number": number, "tokens": len(ids), "ids": ids, "mask": mask, "text": text}


def packed_row(built: Built, stage: str, number: int, seq_len: int, seed: int) -> dict[str, Any]:
    """A row of a stage: documents apart by lines. Raises ValueError for a stage there is not."""
    loader = Loader(built.parts(stage), seq_len=seq_len, seed=seed)
    before: dict[str, int] = {}
    for _ in range(number + 1):
        before = loader.tokens_seen
        batch = loader.take(1)
    source = next(name for name, seen in loader.tokens_seen.items() if seen != before[name])
    tokenizer = Tokenizer.from_dir(built.tokenizer_dir)
    ids, documents = batch.ids[0], batch.documents[0]
    pieces = [_plain(tokenizer, ids[documents == n].tolist()) for n in range(int(documents[-1]) + 1)]
    text = "\n--- border ---\n".join(pieces)
    return {"stage": stage, "number": number, "source": source, "ids": ids.tolist(), "text": f"[{source}]\n{text}"}


def _plain(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, keep_special=True)


def _with_marks(tokenizer: Tokenizer, ids: list[int], mask: list[int]) -> str:
    """The text with what is learned between » and «."""
    return "".join(f"»{text}«" if learned else text for text, learned in stretches(tokenizer, ids, mask))


def stretches(tokenizer: Tokenizer, ids: Sequence[int], mask: Sequence[int]) -> list[tuple[str, bool]]:
    """The text in pieces, special pieces written out, each with whether it is learned."""
    out: list[tuple[str, bool]] = []
    for learned, run in itertools.groupby(zip(ids, mask, strict=False), key=lambda pair: bool(pair[1])):
        out.append((tokenizer.decode([token for token, _ in run], keep_special=True, start=not out), learned))
    return out


def draw(built: Built, path: Path) -> None:
    """A bar for every stage, cut into its sources, and one for what is there. Raises ValueError without matplotlib."""
    need("matplotlib", "--plot")
    backend = need("matplotlib.backends.backend_agg", "--plot")
    figure_module = need("matplotlib.figure", "--plot")
    names = list(built.train)
    by_size = {name: float(shards.num_tokens) for name, shards in built.train.items()}
    bars = {"all there is": normalised(by_size)} | {s: normalised(weights) for s, weights in built.stages.items()}
    # The object interface: pyplot would keep figures alive and choose a window system.
    figure = figure_module.Figure(
        figsize=(10, 1.6 + 0.7 * len(bars) + 0.22 * ((len(names) + 3) // 4)), layout="constrained"
    )
    backend.FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = [
        need("matplotlib", "--plot").colormaps["turbo"](0.15 + 0.65 * i / max(1, len(names) - 1))
        for i in range(len(names))
    ]
    left = dict.fromkeys(bars, 0.0)
    for name, colour in zip(names, colours, strict=True):
        widths = [shares.get(name, 0.0) * 100 for shares in bars.values()]
        starts = list(left.values())
        drawn = axes.barh(list(bars), widths, left=starts, color=colour, edgecolor="white", linewidth=0.5, label=name)
        axes.bar_label(drawn, [f"{w:.0f}" if w >= 4 else "" for w in widths], label_type="center", fontsize=7)
        left = {stage: left[stage] + width for stage, width in zip(bars, widths, strict=True)}
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the tokens, %")
    tokens = sum(by_size.values())
    axes.set_title(f"{tokens / 1e6:,.1f} M training tokens, vocabulary {built.vocab_size:,}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(path, format="png", dpi=150)
