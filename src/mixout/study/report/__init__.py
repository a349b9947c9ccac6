"""A study's report: page, figures, tables. It draws and words what the analysis found, and computes no statistics."""

from mixout.study.report.sections import Data as Data
from mixout.study.report.write import write_report as write_report
