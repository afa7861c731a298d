"The documentation builder and the link check in tools."

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import build_docs
import check_links


def markdown(text):
    return {"cell_type": "markdown", "source": text}


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def data(**kinds):
    return {"output_type": "execute_result", "data": {k.replace("_", "/"): v for k, v in kinds.items()}}


@pytest.fixture
def page(tmp_path):
    def make(*cells):
        front = {"cell_type": "raw", "source": "---\ntitle: A page\noutput-file: a.html\n---"}
        return build_docs.Page("foundations/01_a.ipynb", [front, *cells], "Foundations", tmp_path)

    return make


def test_page_address(page):
    made = page()
    assert (made.title, made.href, made.base) == ("A page", "foundations/a.html", "../")


def test_options_of_a_cell(page):
    shown = page(code("#| echo: false\nsecret()", data(text_plain="42"))).markdown()
    assert "42" in shown and "secret" not in shown
    assert page(code("#| include: false\nsecret()", data(text_plain="42"))).markdown() == ""
    folded = page(code('#| code-fold: true\n#| code-summary: "More: here"\nx = 1')).markdown()
    assert "<details><summary>More: here</summary>" in folded and "x = 1" in folded


def test_labels_are_numbered_and_unique(page):
    made = page(markdown("$$a$$ {#eq-one}\n\n$$b$$ {#eq-two}\n\n![c](d.png){#fig-d}\n\n`$$x$$ {#eq-no}`"))
    text = made.markdown()
    assert made.labels == {"eq-one": "Equation 1", "eq-two": "Equation 2", "fig-d": "Figure 1"}
    assert "![Figure 1: c](d.png){#fig-d}" in text and "`$$x$$ {#eq-no}`" in text
    with pytest.raises(SystemExit, match="eq-one is used twice"):
        page(markdown("$$a$$ {#eq-one}\n\n$$b$$ {#eq-one}")).markdown()


def test_figure_is_written_with_its_caption(page, tmp_path):
    made = page(code("#| label: fig-f\n#| fig-cap: It rises.\nplot()", data(image_jpeg="YWJj", text_plain="<Figure>")))
    text = made.markdown()
    assert (tmp_path / "foundations/a/1.jpg").read_bytes() == b"abc"
    assert 'src="a/1.jpg" alt="It rises."' in text and "[Figure 1: It rises.]{.caption}" in text


def test_progress_shows_only_its_last_state():
    assert build_docs.plain_text("\x1b[32m 1%\r 50%\r100%\x1b[0m\ndone\n") == "100%\ndone"


def test_fence_outgrows_backticks():
    assert build_docs.fenced("a ```` b").startswith("`````\n")


def test_code_is_left_alone():
    text = "a\n\n```python\na\n```\n\nb `a` a"
    assert build_docs.outside_code(lambda s: s.replace("a", "X"), text) == "X\n\n```python\na\n```\n\nb `a` X"


def test_definition_of_a_function():
    def area(
        width: float,  # In pixels
        height: "Path | None" = None,  # The same if None
    ) -> float:  # In square pixels
        "Width times height."

    text = build_docs.definition(area, name="area")
    assert "### area" in text and "Width times height." in text and "In pixels" in text
    assert "def area(width:float, height:Path | None=None)->float\n" in text, "no comments in the signature"


def test_definition_of_a_class():
    class Box(dict):
        "A box."

        def open(self):
            "Lift the lid."

        @property
        def full(self):
            "Whether | not."

        def _hinge(self):
            "Private."

    text = build_docs.definition(Box, name="Box")
    assert "| [open]{#box.open} | Lift the lid. |" in text and "Whether \\| not." in text
    assert "_hinge" not in text and "fromkeys" not in text
    assert build_docs.signature(Box, "def Box(*args:Any, **kwargs:Any)->None:") == "class Box"


CONFIG = {"website": {"title": "t", "site-url": "https://example.org/site"}, "bibliography": "references.bib"}


def test_page_through_pandoc(page, tmp_path):
    import pypandoc

    other = build_docs.Page("index.ipynb", [markdown("$$a$$ {#eq-there}")], "Start", tmp_path)
    made = page(
        markdown("## Head\n\nSee @eq-there, [home](../index.ipynb#x), [it](https://example.org/site/index.html)."),
        markdown("After [@kingma2015adam], $x^2$."),
    )
    pages = [other, made]
    for p in pages:
        p.text = p.markdown()
    found = build_docs.render(made, pages, CONFIG, pypandoc.get_pandoc_path())
    html = (tmp_path / "foundations/a.html").read_text(encoding="utf-8")
    assert 'href="../index.html#eq-there">Equation 1' in html
    assert 'href="../index.html#x">home' in html and 'href="../index.html">it' in html
    assert "<math" in html and 'id="ref-kingma2015adam"' in html and ">References</h2>" in html
    assert ["A page", "Head", "foundations/a.html#head"] in found
    made.text = "See @eq-nowhere."
    with pytest.raises(SystemExit, match="nothing is labelled eq-nowhere"):
        build_docs.render(made, pages, CONFIG, pypandoc.get_pandoc_path())
    made.text = "After [@nobody1999nothing]."
    with pytest.raises(SystemExit, match="nobody1999nothing"):
        build_docs.render(made, pages, CONFIG, pypandoc.get_pandoc_path())


def test_readme_from_a_notebook(tmp_path, monkeypatch):
    cells = [
        markdown("# T\n\n> d"),
        code("#| hide\nimport x"),
        code("#| echo: false\nledger()", data(text_markdown="| claim |\n|---|", text_plain="Ledger")),
        markdown("[paper](paper/00_paper.ipynb), [web](https://example.org), [here](#top), `[a](b)`"),
        code("1 + 1", data(text_plain="2")),
    ]
    (tmp_path / "index.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(build_docs, "NBS", tmp_path)
    parts = ["# T\n\n> d", "| claim |\n|---|"]
    parts += ["[paper](nbs/paper/00_paper.ipynb), [web](https://example.org), [here](#top), `[a](b)`"]
    parts += ["```python\n1 + 1\n```", "```\n2\n```\n"]
    assert build_docs.readme() == "\n\n".join(parts)


def test_link_check_finds_faults(tmp_path):
    good = '<a href="b.html#x">b</a><a href="https://example.org/nowhere">out</a><img src="i.jpg">'
    (tmp_path / "a.html").write_text(good)
    (tmp_path / "b.html").write_text('<p id="x">x</p><a href="#x">x</a><a href="a.html">a</a>')
    (tmp_path / "i.jpg").touch()
    assert check_links.faults(tmp_path) == (2, 4, [])
    (tmp_path / "c.html").write_text(
        '<p id="y"></p><p id="y"></p><a href="b.html#z"></a><a href="none.html"></a><a href="/b.html"></a>'
    )
    wrong = check_links.faults(tmp_path)[2]
    assert len(wrong) == 4
    for told in ("called y", "no such anchor", "leads nowhere", "out of the site"):
        assert any(told in w for w in wrong), told


def test_a_name_in_two_modules_is_linked_by_its_path(tmp_path):
    package, pages = tmp_path / "package", tmp_path / "pages"
    for folder in (package / "a", package / "b", pages):
        folder.mkdir(parents=True)
    for name in ("a", "b"):
        (package / name / "fog.py").write_text(f"def fog():\n    pass\n\n\ndef only_{name}():\n    pass\n")
    docstring = 'def rain():\n    "As `fog(1)`."  # and `only_b`'
    cells = [markdown("See `only_a`, [`fog`](a/fog.ipynb) and `a fog`.\n```\n`fog`\n```"), code("# `fog`")]
    (pages / "good.ipynb").write_text(json.dumps(dict(cells=cells)))
    (pages / "bad.ipynb").write_text(json.dumps(dict(cells=[markdown("See `fog`."), code(f"#| export\n{docstring}")])))
    assert check_links.shared_names(package) == {"fog"}
    told = "bad.ipynb: `fog` is in two modules; link it by its path"
    assert check_links.unclear(pages, package) == [told, told]
