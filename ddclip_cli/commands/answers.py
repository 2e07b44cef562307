"""How `ddclip retrieve` prints an answer: a table for people, JSON for programs, paths for pipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddclip_cli.search.answer import Answer
    from ddclip_cli.search.embeddings import ShapeEmbeddings


class Show:
    """Prints an answer in the way that was asked for."""

    def __init__(self, *, as_json: bool, paths: bool, pictures: bool) -> None:
        self.as_json, self.paths, self.pictures = as_json, paths, pictures

    def __call__(self, answer: Answer, embeddings: ShapeEmbeddings) -> None:
        if self.as_json:
            _print_document(answer)
        elif self.paths:
            _print_paths(answer, embeddings)
        else:
            _print_table(answer, embeddings, pictures=self.pictures)


def _print_document(answer: Answer) -> None:
    from ddclip_cli.console import print_json

    found = []
    for hit in answer.hits:
        more = {"name": hit.name, "link": hit.link, "path": hit.path}
        known = {key: value for key, value in more.items() if value is not None}
        found.append({"rank": hit.rank, "score": hit.score, "id": hit.object_id, **known})
    print_json({"query": answer.query, "hits": found})


def _print_paths(answer: Answer, embeddings: ShapeEmbeddings) -> None:
    from ddclip_cli.errors import UserError
    from ddclip_cli.search.plain import one_line

    for hit in answer.hits:
        if hit.path is None:
            raise UserError(
                f"{embeddings.path} does not say from which file {one_line(hit.object_id)} came: "
                "embed the meshes or pictures themselves, or give --metadata with a column 'path'"
            )
        print(hit.path)


def _print_table(answer: Answer, embeddings: ShapeEmbeddings, *, pictures: bool) -> None:
    import sys

    from ddclip_cli.console import print_table
    from ddclip_cli.search.plain import one_line

    print(one_line(answer.query))
    if pictures and sys.stdout.isatty():
        from ddclip_cli.search import terminal_pictures

        how = terminal_pictures.protocol()
        if how is not None:
            screen = terminal_pictures.screen()
            print(terminal_pictures.strips(answer.hits, embeddings.thumbnail, how, screen), end="")
    if not answer.hits:
        print("nothing was found")
        return
    columns = ["rank", "score", "id"] + [key for key in ("name", "link") if any(getattr(h, key) for h in answer.hits)]
    rows = [
        [hit.rank, f"{hit.score:.4f}", one_line(hit.object_id)]
        + [one_line(getattr(hit, key) or "") for key in columns[3:]]
        for hit in answer.hits
    ]
    print_table(columns, rows)
