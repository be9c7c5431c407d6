"""Draw docs/images/service.svg: the two machines and what goes between them."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "service.svg"
BOXES = (
    (20, "your machine", ("texts, labels", "tokenizer", "CMA-ES, projection", "no weights")),
    (500, "the server", ("the model, frozen", "examples, by content", "committed prompts", "one model thread")),
)
ARROWS = ((88, True, "token ids, once"), (124, True, "prompts [P, n, H] or z [P, d]"), (160, False, "logits [P, N, C]"))


def picture() -> str:
    """Return the SVG."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 220" font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#445"/></marker></defs><rect width="720" height="220" fill="#fff"/>',
    ]
    for x, title, lines in BOXES:
        parts.append(f'<rect x="{x}" y="20" width="200" height="180" rx="8" fill="#eef2f7" stroke="#445"/>')
        parts.append(f'<text x="{x + 100}" y="48" text-anchor="middle" font-weight="bold">{escape(title)}</text>')
        for row, line in enumerate(lines):
            parts.append(f'<text x="{x + 100}" y="{88 + 30 * row}" text-anchor="middle">{escape(line)}</text>')
    for y, right, label in ARROWS:
        start, end = (226, 494) if right else (494, 226)
        parts.append(f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" stroke="#445" marker-end="url(#tip)"/>')
        parts.append(f'<text x="360" y="{y - 7}" text-anchor="middle">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    OUTPUT.write_text(picture(), encoding="utf-8")
    print(f"wrote {OUTPUT.name}")
