"""A page that shows what happened: sections of text, videos side by side, pictures and tables."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

TEMPLATE = Path(__file__).with_name("page.html")


class Page:
    """Collects sections, then writes one HTML file; media lie beside it."""

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self.sections: list[tuple[str, list[str]]] = []

    def section(self, title: str, text: str, *, code: str = "") -> None:
        """Begin a section; ``code`` is the call that a user would write for it."""
        self.sections.append((title, [f"<p>{escape(text)}</p>"]))
        if code:
            self._add(f"<pre>{escape(code.strip())}</pre>")

    def videos(self, items: Sequence[tuple[Path, str]], *, width: int = 248) -> None:
        """Show videos side by side, looping."""
        figures = (
            f'<figure class="pixels"><video src="{path.as_posix()}" width="{width}" autoplay loop '
            f"muted playsinline></video><figcaption>{escape(caption)}</figcaption></figure>"
            for path, caption in items
        )
        self._add(f'<div class="row">{"".join(figures)}</div>')

    def picture(self, path: Path, caption: str) -> None:
        """Show one picture over the whole width."""
        self._add(
            f'<figure class="wide"><img src="{path.as_posix()}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table; numbers are set to the right."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._add(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def link(self, target: str, text: str) -> None:
        """Add a link to a file beside the page."""
        self._add(f'<p><a href="{escape(target)}">{escape(text)}</a></p>')

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._add(f"<p>{escape(text)}</p>")

    def write(self, path: Path, footer: str) -> None:
        """Write the page."""
        links = "".join(
            f'<a href="#s{i}">{escape(title)}</a>' for i, (title, _) in enumerate(self.sections, 1)
        )
        body = "".join(
            f'<section id="s{i}"><h2><small>{i}</small>{escape(title)}</h2>{html}</section>'
            for i, (title, html) in enumerate(((t, "".join(p)) for t, p in self.sections), 1)
        )
        words = {"title": self.title, "lead": self.lead, "footer": footer}
        html = {name: escape(text) for name, text in words.items()} | {"links": links, "body": body}
        path.write_text(Template(TEMPLATE.read_text()).substitute(html))

    def _add(self, html: str) -> None:
        self.sections[-1][1].append(html)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="n">{value:.2f}</td>'
    if isinstance(value, int):
        return f'<td class="n">{value}</td>'
    return f"<td>{escape(str(value))}</td>"
