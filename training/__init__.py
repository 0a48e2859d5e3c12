"""Everything Graft does apart from its page: usable from a script, never importing gradio, plotly or ui."""
