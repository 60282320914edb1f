"""Why a search cannot go on, apart from the errors of its log and of the store.

SearchError
├── SearchChanged    the log belongs to another search: condition SearchChanged
├── EarlierMissing   another experiment has not left yet what is needed: condition WaitingForExperiment
└── EarlierUnsuitable  what it has left is of no use here: condition ExperimentUnsuitable
"""


class SearchError(Exception):
    """The search cannot go on; the message says why and what to do."""


class SearchChanged(SearchError):
    """Space, searcher or objective in the log differ from the manifest's."""


class EarlierMissing(SearchError):
    """The experiment that is named as an earlier one has no log yet, or has not ended: waiting may help."""


class EarlierUnsuitable(SearchError):
    """What the experiment that is named as an earlier one has left is of no use here: only a new one may help."""
