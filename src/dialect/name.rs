//! Model names (contract of the wire, "Model names").
