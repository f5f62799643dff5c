"""Wrong lines for the code that reads, filters, shuffles and downloads text."""

from tests.support.wrong_lines import Mutant

FILTERS, HUB = "tests/test_corpus_filters.py", "tests/test_corpus_hub.py"

CORPUS = [
    Mutant(
        "python/tinylm/corpus/archives.py",
        "                if self._frame is not None:\n",
        "                if False:\n",
        "cut_off_or_damaged",
        "tests/test_corpus_files.py",
    ),
    Mutant(
        "python/tinylm/corpus/rows.py",
        "    if not found and dot:",
        "    if dot:",
        "with_a_dot",
        "tests/test_corpus_files.py",
    ),
    Mutant(
        "python/tinylm/corpus/duplicates.py",
        "            hashes *= self._factors",
        "            hashes += self._factors",
        "near_duplicates",
    ),
    Mutant(
        "python/tinylm/corpus/duplicates.py",
        "        if any(key in self._seen for key in keys):\n            return True",
        "        if any([not self._seen.add(key) for key in keys]):\n            return True",
        "resembles_only",
        FILTERS,
    ),
    Mutant(
        "python/tinylm/corpus/quality.py",
        "            behind = place + n",
        "            behind = place + 1",
        "those_of_the_definition",
        FILTERS,
    ),
    Mutant(
        "python/tinylm/corpus/filters.py",
        "        self._is_global = any(",
        "        self._is_global = all(",
        "whichever_section",
        FILTERS,
    ),
    Mutant(
        "python/tinylm/corpus/filters.py",
        "        with self._lock:\n            todo",
        "        if True:\n            todo",
        "filter_once",
        FILTERS,
    ),
    Mutant(
        "python/tinylm/corpus/shuffling.py",
        "* self._number >> 64",
        "% self._number",
        "size_of_a_bucket",
        "tests/test_corpus_shuffling.py",
    ),
    Mutant(
        "python/tinylm/corpus/requests.py",
        "        request.add_unredirected_header(name, value)",
        "        request.add_header(name, value)",
        "nobody_else",
        HUB,
    ),
    Mutant(
        "python/tinylm/corpus/hub.py",
        "    if digest.hexdigest() != wanted:",
        "    if False:",
        "another_hash",
        HUB,
    ),
    Mutant(
        "python/tinylm/corpus/hub.py",
        '    if path.startswith("/") or ".." in path.split("/"):',
        "    if False:",
        "outside_of_its_folder",
        HUB,
    ),
    Mutant(
        "python/tinylm/corpus/hub.py",
        "            if before and response.status != 206:",
        "            if before:",
        "where_it_broke",
        HUB,
    ),
]
