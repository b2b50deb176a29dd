"""Streams of examples: their sources, their sender, and the peers that Funnel is compared with."""
