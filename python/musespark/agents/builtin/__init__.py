"""Tools to choose from. None is there unless it is given to ``act``.

from musespark.agents.builtin import calculate, table_tools

model.act("…", [calculate, *table_tools({"spend": "spend.csv"})])
"""

from musespark.agents.builtin.calculator import calculate
from musespark.agents.builtin.calendar import add_to_date, days_between, today, weekday
from musespark.agents.builtin.files import file_tools
from musespark.agents.builtin.python import python_tool
from musespark.agents.builtin.tables import table_tools
from musespark.agents.builtin.units import convert_units
from musespark.agents.builtin.vision import visual_tools

__all__ = [
    "add_to_date",
    "calculate",
    "convert_units",
    "days_between",
    "file_tools",
    "python_tool",
    "table_tools",
    "today",
    "visual_tools",
    "weekday",
]
