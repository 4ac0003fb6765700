//! Names and their dense ids: nodes, models, keys. Append-only; read by workers, the ledger and the metrics.
