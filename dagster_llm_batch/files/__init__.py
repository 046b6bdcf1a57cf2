"""Files of submissions: requests, receipts, results and their owners."""
