"""The report of a run, and several runs side by side: one HTML page that needs neither network nor scripts."""

from ldnq.report.page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
