"""Steps in order of their numbers. A step that was released is never edited: write the next one."""
