//! Clusters of real daemons on hosts (being built).
