"""Networks on graphs, of torch_geometric's layers: node classification and the graph auto-encoder.

Every model maps features ``(n, features)``, dense or sparse, and edges ``(2, m)`` to one row a node. Layers multiply
by sparse matrices that are made once for each graph, in place of gathering and scattering along edges; they give what
torch_geometric's give.
"""
