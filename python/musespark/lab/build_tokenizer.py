"""``python -m musespark.lab.build_tokenizer FOLDER [--books FOLDER]``: train and save Nano's
tokenizer."""

from __future__ import annotations

import argparse
from random import Random

from . import mix
from . import tokenizer as tok


def main(argv: list[str] | None = None) -> None:
    """Train on rendered items and prose, save, and print a few facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--books", help="folder of public-domain books (.md, .txt)")
    parser.add_argument("--items", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--force",
        action="store_true",
        help="the ids are frozen: replacing them orphans checkpoints",
    )
    args = parser.parse_args(argv)
    from pathlib import Path

    if (Path(args.folder) / "tokenizer.json").exists() and not args.force:
        parser.error(
            f"{args.folder}/tokenizer.json exists and its ids are frozen; --force replaces it"
        )
    texts = mix.corpus(Random(args.seed), mix.read_books(args.books), args.items)
    tokenizer = tok.build(texts)
    tok.save(tokenizer, args.folder)
    print(f"{tokenizer.get_vocab_size()} entries, {len(tok.words_of(tokenizer))} whole words")


if __name__ == "__main__":
    main()
