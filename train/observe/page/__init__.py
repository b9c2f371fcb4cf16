"""`gmt-train report`: an HTML file on one or several runs that needs no server and no network."""

from .page import write_report

__all__ = ["write_report"]
