//! What the bucket is made to hold, request by request.
