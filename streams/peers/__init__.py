"""What Funnel is compared with."""
