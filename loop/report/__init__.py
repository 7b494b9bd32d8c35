"""What people read of a campaign: report, tables, figures, exports."""
