"""How Sphinx makes the gallery's pages: see tools/pages.py."""

project = "Fast inference notebooks"
html_title = project
extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design"]
nb_execution_mode = "off"  # They have run; the pages show what came of it.
nb_merge_streams = True
nb_code_prompt_show = "Show the {type}"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
myst_heading_slug_func = "tools.pages.heading_slug"
# Tests follow the links of pages; a gallery of some notebooks lacks the others.
suppress_warnings = ["mystnb.unknown_mime_type", "myst.xref_missing"]

html_theme = "sphinx_book_theme"
html_theme_options = {
    "footer_content_items": "",  # It would name an author, and there is no single one.
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
}
html_static_path = ["_static"]
html_css_files = ["gallery.css"]
html_context = {"default_mode": "auto"}  # Light or dark, as the reader's system is.
