"""The paper's claim in small: do a narrator's sentences make a better dual encoder? See docs/PAPER.md."""
