"""The papers' parts as nn.Modules; they need torch and `spinsr.ops`, not BasicSR."""
