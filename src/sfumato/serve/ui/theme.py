"""How the page looks. Nothing in it comes from elsewhere: fonts are those that the machine has."""

import gradio as gr
from gradio.themes.utils.fonts import Font

SANS = tuple(map(Font, ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")))
MONO = tuple(map(Font, ("ui-monospace", "SF Mono", "Consolas", "monospace")))
UMBER = gr.themes.Color(
    name="umber",
    c50="#fbf6f0",
    c100="#f4e7d7",
    c200="#e7cdae",
    c300="#d8ae80",
    c400="#c98f57",
    c500="#b5753b",
    c600="#995c2d",
    c700="#794626",
    c800="#5d3721",
    c900="#46291a",
    c950="#2a170d",
)
CSS = """
.gradio-container { max-width: 1280px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container > main, .gradio-container .tabs { width: 100% !important; }
#title { align-items: center; }
#title h1 { font-size: 1.5rem; letter-spacing: .04em; margin: 0; }
#title p { margin: 0; opacity: .7; }
#appearance { flex: 0 0 auto; min-width: 0; }
.status { padding: .2rem .1rem; font-variant-numeric: tabular-nums; min-height: 2.6rem; }
.status .bar { height: .35rem; border-radius: 1rem; background: var(--border-color-primary);
  margin-top: .35rem; }
.status .bar > span { display: block; height: 100%; border-radius: 1rem; background: var(--color-accent);
  transition: width .15s linear; }
.status.wrong { color: var(--error-text-color, #b3261e); }
.facts { font-size: .85rem; opacity: .85; overflow-wrap: anywhere; }
:is(.facts, .measured) :is(table, tr) { border-collapse: collapse; width: 100%; border: 0 !important; }
:is(.facts, .measured) :is(td, th) {
  text-align: left; padding: .25rem .6rem .25rem 0; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; font-variant-numeric: tabular-nums; }
.seed { align-items: end; }
.seed button { min-width: 3rem; }
#now img, #made img { image-rendering: auto; object-fit: contain; }
#made .grid-container { grid-template-columns: repeat(4, 1fr) !important; height: auto !important; }
@media (max-width: 640px) {
  .gradio-container { padding: .5rem !important; }
  #title p { display: none; }
  #result { order: -1; }
  #now { height: 320px !important; }
}
"""
TOGGLE = "() => { document.body.classList.toggle('dark') }"


def theme() -> gr.themes.Base:
    """Warm browns on stone, light and dark."""
    return gr.themes.Base(
        primary_hue=UMBER, neutral_hue="stone", radius_size="md", font=SANS, font_mono=MONO
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        button_primary_background_fill_dark="*primary_500",
        block_label_text_weight="500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        slider_color="*primary_500",
    )
