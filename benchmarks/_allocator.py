"""Imported before torch: its allocator asks for huge pages, for Transformers as for tunebook, whose command line does so."""

from tunebook.envs import ask_for_huge_pages

ask_for_huge_pages()
