"""The page: the only place where Gradio and Plotly live. It shows what `training` does and does none of it itself."""
