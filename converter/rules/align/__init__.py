"""Finding out which variable is which from the computation itself: both calls are traced, and what plays the same part
in both is the same.

The way through, one module for each stage:

* ``views``: a part of a variable, as an offset and strides; ``graph``: a call as a graph of such parts and
  operations;
* ``lowering``, ``loops``, ``parallel``, ``pushing``, ``constants``: from a jaxpr to that graph: calls are inlined,
  loops unrolled, and parts that are cut out of a result are cut out of the variables instead;
* ``canonical``: the same graph with everything taken off that two ways of writing one formula differ in;
* ``palette``, ``refinement``, ``skeleton``, ``coarse``: colours, which two parts share if they play the same part;
* ``levels``, ``individualise``: pairs of parts with the same colour, from exact to coarse;
* ``elements``, ``correspondence``: pairs of parts as operations on whole variables;
* ``alignment``: all of it, with the proof by running both models; ``confidence``: how sure each result is;
* ``rule_text``: the result as a rule file.
"""
