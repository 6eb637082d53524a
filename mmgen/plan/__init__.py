from mmgen.plan.next_neighbor import NextNeighbor
from mmgen.plan.next_token import NextToken
from mmgen.plan.plan import GenerationPlan, PlanBatch

__all__ = ["GenerationPlan", "NextNeighbor", "NextToken", "PlanBatch"]
