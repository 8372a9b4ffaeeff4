"""A loaded model inside agent frameworks, in this process: no server, nothing leaves the machine.

One module for each framework, which imports it: ``langchain`` (``ChatMuseSpark``), ``llama_index``
(``MuseSparkLLM``), ``smolagents`` and ``pydantic_ai`` (``MuseSparkModel``). Without the framework
the import raises :class:`musespark.MissingLibrary`, which names the extra. All of them take a model
of :func:`musespark.load` and the options of :meth:`musespark.Model.chat`, and raise its errors.
"""
