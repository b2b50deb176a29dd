"""The learners that Funnel is compared with."""
