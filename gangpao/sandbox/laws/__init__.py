"""Laws of loss with their intervals, what to doubt about them, and verdicts that may say \"cannot tell\"."""
