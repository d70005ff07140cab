"""Activations: where they come from, how they are kept, and how they are handed to training.

In this room:

- the contract: ``source`` (``Source``, ``Stream``, ``Batch``);
- the sources: ``rows`` (``StoreSource`` over a captured store), ``tensors`` (``TensorSource``), ``live``
  (``LiveSource``, captured while used), ``streamed`` (``StreamedSource``, the same over documents that no memory
  holds), ``synthetic`` (``SyntheticSource``, whose dictionary is known) and
  ``labels`` (``LabelledSource``, another one with a number per text);
- the way into a store: ``texts`` and ``installed`` (documents, from ``records`` and ``tables``), ``models``,
  ``contexts`` (windows of tokens; ``frame`` is what stands around them, ``pieces`` how a long text is read),
  ``items`` (tensors in place of texts), ``capture`` (hooks), ``extract`` (rows), ``plan`` (what goes into
  which shard), ``store`` (the capture itself), ``writing`` and ``partial`` (shards on their way to the disk);
- ``keep``, which tokens take part; ``places``, ``sites``, ``precision``, ``weights``, ``memory`` (of models);
- the way out: ``manifest``, ``shards`` and ``files`` (what is on disk), ``reading``, ``splits``, ``shuffle``;
- ``scale``, the input scale, and ``pooling``, one activation per text.

To add a source, write one file with a final subclass of ``Source``. If its rows can be read in any order,
give ``rows.SplitRows`` an object with ``gather``; if it makes its rows as it goes, give
``shuffle.PooledStream`` an object with ``load``, pure in (seed, place). Either brings full batches,
prefetching and resume to the bit.
"""

from .installed import installed_text
from .items import Item
from .labels import LabelledSource
from .live import LiveSource
from .models import LoadedModel, load_model
from .rows import StoreSource
from .source import Batch, Source, Stream
from .store import capture_to_store
from .streamed import StreamedSource
from .synthetic import SyntheticConfig, SyntheticSource
from .tensors import TensorSource
from .texts import iter_documents, load_documents

__all__ = [
    "Batch",
    "Item",
    "LabelledSource",
    "LiveSource",
    "LoadedModel",
    "Source",
    "StoreSource",
    "Stream",
    "StreamedSource",
    "SyntheticConfig",
    "SyntheticSource",
    "TensorSource",
    "capture_to_store",
    "installed_text",
    "iter_documents",
    "load_documents",
    "load_model",
]
